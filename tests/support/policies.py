"""Every policy and every length predictor of ours, with arguments that small loads notice, and a load to serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from symbolic import make_engine

from minivllm.clock import VirtualClock
from minivllm.engine import Engine
from minivllm.plan import StepReport
from minivllm.request import Request
from minivllm.sampling_params import SamplingParams

POLICIES: dict[str, dict[str, Any]] = {
    "fcfs.FCFS": {},
    "static.StaticBatching": {},
    "prefill_first.PrefillFirst": {},
    "sarathi.Sarathi": {},
    "priority.Priority": {},
    "sjf.ShortestJobFirst": {},
    "srpt.ShortestRemaining": {"preemptible_fraction": 0.8},
    "aging.Aging": {"tokens_per_s": 0.5},
    "mlfq.MultiLevelFeedback": {"num_levels": 3, "quantum_tokens": 2.0, "prompt_token_cost": 0.25, "starve_s": 6.0},
    "vtc.VirtualTokenCounter": {},
    "edf.EarliestDeadline": {"ttft_s": 4.0, "tpot_s": 0.5, "tokens_per_turn": 3},
    "longest_prefix_match.LongestPrefixMatch": {},
    "past_future.PastFuture": {"window": 20, "prior_tokens": 5},
    "dynamic_batching.DynamicBatching": {"min_requests": 3, "max_wait_s": 0.01},
    "random_order.RandomOrder": {"seed": 3},
    "reverse.Reverse": {},
}
PREDICTORS: dict[str, dict[str, Any]] = {
    "oracle.Oracle": {},
    "noisy_oracle.NoisyOracle": {"sigma": 0.7},
    "refining_oracle.RefiningOracle": {"sigma": 0.7},
    "constant.Constant": {"num_tokens": 3},
    "history.History": {"prior_tokens": 4},
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request of a load; `id` is its place in it, and the engine's."""

    at_s: float = 0.0
    num_prompt_tokens: int = 1
    num_output_tokens: int
    priority: int = 0
    client_id: int = 0


class Bench:
    """An engine whose every step takes a second, and what it is to serve, in order of arrival."""

    def __init__(
        self, jobs: Sequence[Job], policy: str, policy_kwargs: dict[str, Any] | None = None, **options
    ) -> None:
        self.clock = VirtualClock()
        kwargs = POLICIES[policy] if policy_kwargs is None else policy_kwargs
        self.engine: Engine = make_engine(
            **{"num_blocks": 40, "block_size": 4, "prefix_caching": False, "max_num_batched_tokens": 512, **options},
            policy=policy,
            policy_kwargs=kwargs,
            clock=self.clock,
        )
        self.finished: list[Request] = []
        # Of each step, and (request id, new tokens) of everyone in it.
        self.reports: list[StepReport] = []
        self.emitted: list[tuple[tuple[int, tuple[int, ...]], ...]] = []
        self._jobs = list(jobs)
        assert all(a.at_s <= b.at_s for a, b in zip(self._jobs, self._jobs[1:], strict=False))

    @property
    def is_busy(self) -> bool:
        return bool(self._jobs) or self.engine.has_unfinished

    def step(self) -> None:
        """Whoever is due arrives, and a second goes by."""
        while self._jobs and self._jobs[0].at_s <= self.clock.now_s():
            job = self._jobs.pop(0)
            params = SamplingParams(max_tokens=job.num_output_tokens, ignore_eos=True, seed=0)
            self.engine.add_request(
                [i % 2 for i in range(job.num_prompt_tokens)],
                params,
                arrival_s=job.at_s,
                priority=job.priority,
                client_id=job.client_id,
            )
        if self.engine.has_unfinished:
            self.reports.append(self.engine.step())
            self.emitted.append(self.reports[-1].emitted)
            self.finished += self.engine.take_finished()
        self.clock.advance(1.0)

    def drain(self, limit: int = 5000) -> list[Request]:
        """Serve all; in the order of their ends."""
        for _ in range(limit):
            if not self.is_busy:
                self.engine.check()
                return self.finished
            self.step()
        raise AssertionError(f"not done after {limit} steps")
