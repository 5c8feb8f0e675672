"""The rules that a policy's plan must keep, checked before anything of it is executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minivllm.config import SchedulerConfig
from minivllm.request import Request, RequestStatus, RequestView
from minivllm.scheduler.base import Allotment, PolicyError, SchedulingPolicy, break_rule
from minivllm.scheduler.victims.base import VictimPolicy


def check_plan(
    plan: Sequence[Allotment], requests: Mapping[int, Request], policy: SchedulingPolicy, config: SchedulerConfig
) -> Sequence[Allotment]:
    """The plan itself.

    Args:
        plan: the policy's.
        requests: all unfinished ones.
        policy: whose it is.
        config: the budgets.

    Raises:
        PolicyError: it breaks a rule.
    """
    check_order([allotment.request for allotment in plan], requests, policy)
    spent = 0
    for allotment in plan:
        if allotment.num_tokens is not None:
            request = requests[allotment.request.request_id]
            left = request.num_tokens - request.num_computed_tokens
            if not 1 <= allotment.num_tokens <= left:
                break_rule(
                    policy,
                    "token counts",
                    f"request {request.request_id} gets {allotment.num_tokens} of {left} tokens",
                )
            spent += allotment.num_tokens
    if spent > config.max_num_batched_tokens:
        break_rule(policy, "token budget", f"{spent} tokens are planned, {config.max_num_batched_tokens} allowed")
    return plan


def check_order(
    order: Sequence[RequestView], requests: Mapping[int, Request], policy: SchedulingPolicy
) -> Sequence[Request]:
    """The order itself, whose requests are those of the scheduler.

    Raises:
        PolicyError: somebody in it is unknown, or stands there twice.
    """
    ids = [request.request_id for request in order]
    found = [requests.get(request_id) for request_id in ids]
    for request_id, own, theirs in zip(ids, found, order, strict=True):
        if own is None or own is not theirs or own.status is RequestStatus.ENDING:
            break_rule(policy, "known requests", f"request {request_id} is finished or was never added")
    if len(set(ids)) < len(ids):
        twice = next(request_id for request_id in ids if ids.count(request_id) > 1)
        break_rule(policy, "once a step", f"request {twice} is planned twice")
    return [request for request in found if request is not None]


def check_victim(chosen: RequestView, candidates: Sequence[Request], victims: VictimPolicy) -> Request:
    """The chosen one.

    Raises:
        PolicyError: it is none of the candidates.
    """
    for candidate in candidates:
        if candidate is chosen:
            return candidate
    raise PolicyError(f"victim={type(victims).__name__}: breaks the rule of victims: {chosen!r} is no candidate")


def check_wait(until_s: float, policy: SchedulingPolicy, now_s: float) -> float:
    """The instant itself.

    Raises:
        PolicyError: it never comes.
    """
    if not now_s < until_s < float("inf"):
        break_rule(policy, "waits that end", f"nothing shall run until {until_s} s, and it is {now_s} s")
    return until_s
