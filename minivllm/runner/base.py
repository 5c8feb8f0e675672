"""The seam between the wings: a runner turns a plan into tokens. The host wing cannot tell one from another, which is
what makes a simulated one honest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from minivllm.plan import StepPlan, StepResult
from minivllm.quantization.precision import Precision

if TYPE_CHECKING:
    from torch import Tensor

    from minivllm.attention.base import PackedBatch
    from minivllm.runner.parts import Parts


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryReport:
    """Bytes. None where the device does not tell."""

    weights_bytes: int
    kv_cache_bytes: int
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    precision: Precision | None = None


class Launched(Protocol):
    """A step on its way."""

    def wait(self) -> StepResult:
        """Returns when the step's tokens are known. Called once."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A step that was over when it was launched, on a device that does not run beside the host."""

    result: StepResult

    def wait(self) -> StepResult:
        return self.result


class Runner(Protocol):
    """Owns all that lies on the device: weights, K/V tensors, a row a running request."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the K/V pool."""
        ...

    @property
    def num_swap_blocks(self) -> int:
        """Blocks that host memory has room for; 0 where nothing is swapped."""
        ...

    @property
    def max_model_len(self) -> int:
        """Longest sequence, prompt and output together."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def launch(self, plan: StepPlan) -> Launched:
        """Start one step. The one before may still be on its way; steps take effect in the order of their launch, and
        a chunk may hold a token that the step before is sampling."""
        ...

    def memory(self) -> MemoryReport: ...


@runtime_checkable
class ReadingRunner(Runner, Protocol):
    """A runner with a model in it, which can be made to read a text (see `score`)."""

    @property
    def parts(self) -> Parts: ...

    def forward(self, batch: PackedBatch) -> Tensor:
        """Hidden states after the final norm, [N, C], of a batch that belongs to no request: K/V go where its slots
        say. Nothing is sampled, and no row is touched. Called in inference mode."""
        ...
