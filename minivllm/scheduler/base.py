"""The scheduling seam. A policy reads requests and says who comes first; it touches no block and no tensor.

The cheapest policy is a sort key. One that wants more overrides `order`; one that wants everything overrides `plan`.
The mechanism in `scheduler.py` executes what a policy says in its order, finds blocks, preempts, and checks the rules.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from minivllm.request import RequestView


class PolicyError(ValueError):
    """A policy broke a rule of the plan: its name and the rule are in the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerState:
    """What a policy sees of one step. Requests are live: read them, keep nothing."""

    # In order of admission.
    running: Sequence[RequestView]
    # In order of arrival or preemption.
    waiting: Collection[RequestView]
    max_num_seqs: int
    max_num_batched_tokens: int
    num_available_blocks: int
    num_blocks: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Allotment:
    """A request's share of a step: `num_tokens` of its next tokens, or as many as the budgets leave where None."""

    request: RequestView
    num_tokens: int | None = None


class SchedulingPolicy:
    """Base of all policies.

    Attributes:
        preemptive: False serves running requests before waiting ones; True ranks both together, so that a waiting
            request takes the seat and the blocks of a running one that ranks behind it.
        mixed_steps: False keeps prefills and decodes in different steps: the first request of a step decides.
    """

    preemptive: bool = False
    mixed_steps: bool = True

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        """Smallest first. The default is first come, first served."""
        return (request.arrival_s, request.request_id)

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        """Everyone who may get tokens in this step, most deserving first. Whoever is left out gets none."""

        def rank(request: RequestView) -> tuple[float, ...]:
            return self.key(request, now_s)

        if self.preemptive:
            return sorted([*state.running, *state.waiting], key=rank)
        running = sorted(state.running, key=rank)
        if len(running) >= state.max_num_seqs:
            return running
        return [*running, *sorted(state.waiting, key=rank)]

    def plan(self, state: SchedulerState, now_s: float) -> Sequence[Allotment]:
        """The whole plan of a step, for policies that decide token counts too."""
        return [Allotment(request) for request in self.order(state, now_s)]

    def victim(self, candidates: Sequence[RequestView], now_s: float) -> RequestView:
        """Who is preempted when blocks or seats are short: the least deserving of `candidates`."""
        return max(candidates, key=lambda request: self.key(request, now_s))
