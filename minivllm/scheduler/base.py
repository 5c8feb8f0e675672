"""The scheduling seam. A policy reads requests and says who comes first; it touches no block and no tensor.

The cheapest policy is a sort key. One that wants more overrides `order`; one that wants everything overrides `plan`.
The mechanism in `scheduler.py` executes what a policy says in its order, finds blocks, preempts, and checks the rules.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class KeyChanges(enum.Enum):
    """When a request's key may change. Whoever says less than EVERY_STEP is asked less often, and a queue of a hundred
    thousand costs no more than one of ten; whoever says nothing is right, and slower."""

    # Made of what a request arrives with.
    NEVER = "never"
    # Made of its own progress: while it waits, its key stands still.
    WHEN_SERVED = "when served"
    # Made of the time too, or of what became of others.
    EVERY_STEP = "every step"


class Served(NamedTuple):
    """What a request got in one step. `num_prefill_tokens` of its known tokens were computed beside the newest one,
    `num_output_tokens` are new."""

    request: RequestView
    num_prefill_tokens: int
    num_output_tokens: int


class SchedulingPolicy:
    """Base of all policies.

    Attributes:
        preemptive: False serves running requests before waiting ones; True ranks both together, so that a waiting
            request takes the seat and the blocks of a running one that ranks behind it.
        mixed_steps: False keeps prefills and decodes in different steps: the first request of a step decides.
        key_changes: a promise about `key`.
    """

    preemptive: bool = False
    mixed_steps: bool = True
    key_changes: KeyChanges = KeyChanges.EVERY_STEP

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

    def wait_until_s(self, state: SchedulerState, now_s: float) -> float | None:
        """An instant before which nothing shall run, though there is something to run; None goes now. A request that
        arrives meanwhile is a reason to be asked again."""
        return None

    # What happened. A policy that keeps no account of it leaves these alone, and they cost nothing.

    def on_arrival(self, request: RequestView, now_s: float) -> None:
        """A request came in."""

    def on_served(self, served: Sequence[Served], now_s: float) -> None:
        """A step is over."""

    def on_finish(self, request: RequestView, now_s: float) -> None:
        """A request ended, whatever the reason."""
