"""The seam of step times: a step's work goes in, the seconds that a device would need come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from minivllm.models.spec import ModelSpec
from minivllm.simulation.hardware import HardwareConfig
from minivllm.simulation.sizes import ModelSizes

if TYPE_CHECKING:
    from minivllm.config import EngineConfig


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step computes, summed over its requests.

    A token at position p of a request sees p + 1 keys (fewer, where a window cuts them off): its pairs. A request's
    context is all that its last token of the step sees, read once however many of its tokens run.
    """

    # Tokens of prompts (or of what a preempted request computes again), and of how many requests.
    num_prefill_tokens: int = 0
    num_prefill_requests: int = 0
    # Requests that compute their newest token only.
    num_decode_tokens: int = 0
    # Tokens whose logits are sampled from.
    num_sampled_tokens: int = 0
    # Contexts of the prefilling and of the decoding requests, in tokens.
    num_prefill_context_tokens: int = 0
    num_decode_context_tokens: int = 0
    # (query, key) pairs of the prefilling requests; those of decodes are their contexts.
    num_prefill_pairs: int = 0
    # K/V blocks that move between device and host for preemption by swapping.
    num_swapped_blocks: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prefill_tokens + self.num_decode_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimeTarget:
    """What a step-time model is made for.

    Args:
        config: the engine's.
        spec: shape of its model.
        sizes: what the model's weights and K/V take, in the precision of this engine.
        hardware: the device that is stood for.
    """

    config: EngineConfig
    spec: ModelSpec
    sizes: ModelSizes
    hardware: HardwareConfig


class StepTimeModel(Protocol):
    """How long steps take. Deterministic: the same steps in the same order take the same time.

    A model is made with `target`, a `StepTimeTarget`, and the keys of the group `step_time`. Where it knows how far off
    it is, it says so in an attribute `error_fraction`, which goes to the table `runs`.
    """

    def step_s(self, work: StepWork) -> float:
        """Seconds from one step's beginning to the next one's, the host's share included.

        Raises:
            ValueError: the step lies where this model knows nothing.
        """
        ...
