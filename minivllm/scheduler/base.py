"""The scheduling seam. A policy reads requests and says who comes first; it touches no block and no tensor.

The cheapest policy is a sort key. One that wants more overrides `order`; one that wants everything overrides `plan`.
The mechanism in `scheduler.py` executes what a policy says in its order, finds blocks, preempts, and checks the rules.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, NoReturn, TypeVar

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
    # The waiting ones by the policy's key, as many as could be let in at once; all of them, sorted, where None.
    ranked_waiting: Callable[[], Sequence[RequestView]] | None = None
    # How many of a waiting request's first tokens the prefix cache holds.
    num_cached_tokens: Callable[[RequestView], int] | None = None


class Allotment(NamedTuple):
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
    """What a request got in one step: `num_prefill_tokens` of its known tokens were computed (a decode computes none),
    and `num_output_tokens` are new."""

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
        if state.ranked_waiting is None:
            waiting: Sequence[RequestView] = ranked(self, list(state.waiting), now_s)
        else:
            waiting = state.ranked_waiting()
        if self.preemptive:
            return ranked(self, [*state.running, *waiting], now_s)
        running = ranked(self, state.running, now_s)
        return running if len(running) >= state.max_num_seqs else [*running, *waiting]

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


AnyRequest = TypeVar("AnyRequest", bound=RequestView)


def ranked(policy: SchedulingPolicy, requests: Sequence[AnyRequest], now_s: float) -> list[AnyRequest]:
    """Requests by a policy's key, smallest first; equals stay in their order.

    Raises:
        PolicyError: a key that cannot be ranked.
    """
    keys = keys_of(policy, requests, now_s)
    try:
        order = sorted(range(len(keys)), key=keys.__getitem__)
    except TypeError as error:
        break_rule(policy, "keys", f"they cannot be compared: {error}")
    return [requests[i] for i in order]


def keys_of(policy: SchedulingPolicy, requests: Sequence[RequestView], now_s: float) -> list[tuple[float, ...]]:
    """A policy's keys, all of them tuples of numbers.

    Raises:
        PolicyError: one is not.
    """
    key = policy.key
    keys = [key(request, now_s) for request in requests]
    try:
        total = sum(chain.from_iterable(keys))
    except TypeError as error:
        break_rule(policy, "keys", f"a key must be a tuple of numbers: {error}")
    # A sum of many is not a number where one of them is not, and where infinities meet.
    if total != total:
        for request, found in zip(requests, keys, strict=True):
            if any(part != part for part in found):
                break_rule(policy, "keys", f"request {request.request_id} has the key {found}, which has no order")
    return keys


def break_rule(policy: SchedulingPolicy, rule: str, what: str) -> NoReturn:
    """Raise the policy's error, with its name and the rule."""
    raise PolicyError(f"scheduler={type(policy).__name__}: breaks the rule of {rule}: {what}")


def overrides(policy: SchedulingPolicy, method: str) -> bool:
    """Whether a policy has a method of its own."""
    return getattr(type(policy), method) is not getattr(SchedulingPolicy, method)
