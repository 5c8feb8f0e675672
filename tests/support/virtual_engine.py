"""A real engine over a device that only takes time, on a virtual clock: every instant is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivllm.clock import VirtualClock
from minivllm.config import CacheConfig, Component, EngineConfig, ModelConfig, SchedulerConfig
from minivllm.engine import Engine
from minivllm.plan import SampledTokens, StepPlan, StepResult
from minivllm.runner.base import Done, MemoryReport

STEP_S = 0.5


class TimedRunner:
    """A device wing that takes some time a step, and says 7."""

    vocab_size, eos_token_ids = 10, frozenset[int]()

    def __init__(self, clock: VirtualClock, step_s: Callable[[StepPlan], float], num_blocks: int, longest: int) -> None:
        self._clock, self._step_s = clock, step_s
        self.num_blocks, self.num_swap_blocks, self.max_model_len = num_blocks, 0, longest

    def launch(self, plan: StepPlan) -> Done:
        self._clock.advance(0.0 if plan.is_empty else self._step_s(plan))
        ids = [chunk.request_id for chunk in plan.chunks if chunk.samples]
        return Done(result=StepResult(samples=tuple(SampledTokens(request_id=i, token_ids=(7,)) for i in ids)))

    def memory(self) -> MemoryReport:
        return MemoryReport(weights_bytes=0, kv_cache_bytes=0)


def make_engine(
    *,
    step_s: Callable[[StepPlan], float] = lambda plan: STEP_S,
    num_blocks: int = 64,
    longest: int = 64,
    prefix_caching: bool = False,
    policy: str | None = None,
    **scheduler: Any,
) -> Engine:
    """An engine whose clock stands at 100 s."""
    clock = VirtualClock()
    if policy is not None:
        scheduler["policy"] = Component(target=policy)
    config = EngineConfig(
        model=ModelConfig(path="x"),
        cache=CacheConfig(block_size=4, prefix_caching=prefix_caching),
        scheduler=SchedulerConfig(**scheduler),
    )
    clock.advance(100.0)
    return Engine(config, TimedRunner(clock, step_s, num_blocks, longest), clock)
