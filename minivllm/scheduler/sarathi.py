"""Stall-free chunked prefill: Sarathi-Serve (arXiv 2403.02310, algorithm 3). A step has a budget of tokens. Decodes
take theirs first, so that none of them stalls; what is left goes to prefills that have begun, then to new ones, cut to
fit. The budget bounds the time of a step, and with it the gap between two tokens."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.component import is_count, require
from minivllm.scheduler.base import Allotment, KeyChanges, SchedulerState, SchedulingPolicy


class Sarathi(SchedulingPolicy):
    """Within each of the three, first come, first served.

    Args:
        step_tokens: the budget of a step, at most `max_num_batched_tokens`; all of that where None. Below the number of
            running requests, the youngest of them wait.
    """

    key_changes = KeyChanges.NEVER

    def __init__(self, step_tokens: int | None = None) -> None:
        require(step_tokens is None or is_count(step_tokens), "scheduler.step_tokens", step_tokens, "null or 1 or more")
        self._step_tokens = step_tokens

    def plan(self, state: SchedulerState, now_s: float) -> Sequence[Allotment]:
        limit = state.max_num_batched_tokens
        budget = limit if self._step_tokens is None else self._step_tokens
        require(budget <= limit, "scheduler.step_tokens", budget, f"at most scheduler.max_num_batched_tokens={limit}")
        everyone = self.order(state, now_s)
        # Those that run come first in the order; of them, those that decode.
        running = sorted(everyone[: len(state.running)], key=lambda request: request.is_prefill)
        plan: list[Allotment] = []
        for request in [*running, *everyone[len(running) :]]:
            if budget == 0:
                break
            num_there = request.num_computed_tokens
            if len(plan) >= len(running) and state.num_cached_tokens is not None:
                num_there = max(num_there, state.num_cached_tokens(request))
            num_tokens = min(request.num_tokens - num_there, budget)
            plan.append(Allotment(request, num_tokens))
            budget -= num_tokens
        return plan
