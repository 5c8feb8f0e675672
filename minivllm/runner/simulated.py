"""The runner without a device: it asks a model of step times how long each plan would take.

The scheduler, the block pool and the engine cannot tell it from another. A step occupies the device from the moment
when the one before it is over, and `wait` moves the clock to its end: so steps overlap, or follow each other, as the
engine launches and waits for them. The host's own time is part of a step's, as the model of step times sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from minivllm.clock import VirtualClock
from minivllm.config import EngineConfig
from minivllm.models.spec import ModelSpec
from minivllm.plan import Chunk, SampledTokens, StepPlan, StepResult
from minivllm.runner.base import MemoryReport
from minivllm.runner.pool_size import pool_blocks, swap_blocks
from minivllm.simulation.base import StepTimeModel
from minivllm.simulation.sizes import DTYPE_BYTES, ModelSizes
from minivllm.simulation.work import step_work
from minivllm.speculation.base import DraftRequest
from minivllm.speculation.synthetic import Synthetic


@dataclass(frozen=True, slots=True)
class Flying:
    """A step that will be over at `end_s`."""

    clock: VirtualClock
    end_s: float
    result: StepResult

    def wait(self) -> StepResult:
        self.clock.sleep_until(self.end_s)
        return self.result


class SimulatedRunner:
    """Answers plans in virtual time. Every sampling chunk gets a token that ends nothing: 0, or the first that the
    request does not stop at.

    Args:
        config: the engine's, with its `simulation`.
        spec: the model's shape.
        sizes: what it takes.
        step_time: how long steps take.
        clock: the engine's.

    Raises:
        ValueError: a drafter that needs a model, no memory for one block of K/V.
    """

    kernels = None

    def __init__(
        self, config: EngineConfig, spec: ModelSpec, sizes: ModelSizes, step_time: StepTimeModel, clock: VirtualClock
    ) -> None:
        assert config.simulation is not None
        self.hardware = config.simulation.hardware
        self.step_time = step_time
        self.vocab_size = spec.vocab_size
        self.max_model_len = spec.limit_length(config.model.max_model_len)
        # Nobody says the end token, so nothing ends by it.
        self.eos_token_ids: frozenset[int] = frozenset()
        self._config, self._spec, self._sizes, self._clock = config, spec, sizes, clock
        self._block_bytes = sizes.kv_token_bytes * config.cache.block_size
        self.num_blocks = pool_blocks(
            config,
            bytes_per_block=self._block_bytes,
            max_model_len=self.max_model_len,
            free_bytes=self._free_bytes if self.hardware.device == "cuda" else None,
        )
        self.num_swap_blocks = swap_blocks(config, self._block_bytes)
        self._drafter = _synthetic(config)
        self._end_s = 0.0
        # Steps take no time, and are none of the step-time model's business.
        self.is_warming_up = False
        # Of the running requests that stop at 0.
        self._tokens: dict[int, int] = {}

    def launch(self, plan: StepPlan) -> Flying:
        for request_id in plan.released:
            self._tokens.pop(request_id, None)
        for new in plan.new_rows:
            stops = new.sampling_params.stop_token_ids
            if 0 in stops:
                self._tokens[new.request_id] = next(i for i in count() if i not in stops)
        work = step_work(plan)
        counts = (work.num_tokens or work.num_swapped_blocks) and not self.is_warming_up
        took_s = self.step_time.step_s(work) if counts else 0.0
        assert took_s >= 0, f"a step of {took_s} s"
        self._end_s = max(self._clock.now_s(), self._end_s) + took_s
        return Flying(self._clock, self._end_s, self._result(plan, took_s))

    def _result(self, plan: StepPlan, took_s: float) -> StepResult:
        if self._drafter is not None:
            samples = tuple([self._sample(chunk) for chunk in plan.chunks if chunk.samples])
            if not any(sample.num_draft_tokens for sample in samples):
                return StepResult(samples=samples)
            # Drafts that nobody makes cost nothing.
            return StepResult(samples=samples, draft_s=0.0, verify_s=took_s)
        tokens = self._tokens
        return StepResult(
            samples=tuple([self._sample(chunk) for chunk in plan.others if chunk.samples]),
            decoded=tuple([tokens.get(i, 0) for i in plan.decodes]) if tokens else (0,) * len(plan.decodes),
        )

    def _sample(self, chunk: Chunk) -> SampledTokens:
        """A token; of a chunk with drafts, as many more as the synthetic drafter says."""
        request_id, num_drafts = chunk.request_id, chunk.num_draft_tokens
        num_accepted = 0
        if num_drafts:
            assert self._drafter is not None
            end = chunk.start + chunk.num_tokens
            request = DraftRequest(request_id=request_id, row=0, num_tokens=end, num_draft_tokens=num_drafts)
            num_accepted = self._drafter.num_accepted(request, num_drafts) or 0
        return SampledTokens(
            request_id=request_id,
            token_ids=(self._tokens.get(request_id, 0),) * (num_accepted + 1),
            num_draft_tokens=num_drafts,
            draft_depth=num_drafts,
        )

    def memory(self) -> MemoryReport:
        return MemoryReport(
            weights_bytes=self._sizes.weights_bytes,
            kv_cache_bytes=self.num_blocks * self._block_bytes,
            precision=self._sizes.precision,
        )

    def _free_bytes(self) -> int:
        """What the fraction of the memory leaves beside weights and the largest step: the residual stream twice, q, k
        and v, and gate and up of all tokens, and the logits in float32."""
        spec, scheduler = self._spec, self._config.scheduler
        token_values = 2 * spec.hidden_size + (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        token_values += 3 * spec.intermediate_size
        activations = scheduler.max_num_batched_tokens * token_values * DTYPE_BYTES[self._sizes.dtype]
        num_sampled = scheduler.max_num_seqs
        if self._config.speculation.enabled:
            num_sampled *= 1 + self._config.speculation.num_draft_tokens
        logits = num_sampled * spec.vocab_size * (DTYPE_BYTES[self._sizes.dtype] + 4)
        budget = self._config.cache.gpu_memory_fraction * self.hardware.memory_bytes
        return max(0, int(budget) - self._sizes.weights_bytes - activations - logits)


def _synthetic(config: EngineConfig) -> Synthetic | None:
    drafter = config.speculation.drafter
    if drafter is None:
        return None
    if config.speculation.keeps_text:
        raise ValueError(
            f"speculation._target_={drafter.target!r}: a simulation has no tokens to draft from: choose "
            "speculation=synthetic with an acceptance, or speculation=off"
        )
    made: Synthetic = drafter.make("speculation", Synthetic, target=None)
    return made
