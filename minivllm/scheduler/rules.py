"""The rules that a policy's plan must keep, checked before anything of it is executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from minivllm.config import SchedulerConfig
from minivllm.request import Request, RequestView
from minivllm.scheduler.base import Allotment, PolicyError, SchedulingPolicy
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
    seen: set[int] = set()
    spent = 0
    for allotment in plan:
        request_id = allotment.request.request_id
        request = requests.get(request_id)
        if request is None or request is not allotment.request:
            break_rule(policy, "known requests", f"request {request_id} is finished or was never added")
        if request_id in seen:
            break_rule(policy, "once a step", f"request {request_id} is planned twice")
        seen.add(request_id)
        if allotment.num_tokens is not None:
            left = request.num_tokens - request.num_computed_tokens
            if not 1 <= allotment.num_tokens <= left:
                break_rule(policy, "token counts", f"request {request_id} gets {allotment.num_tokens} of {left} tokens")
            spent += allotment.num_tokens
    if spent > config.max_num_batched_tokens:
        break_rule(policy, "token budget", f"{spent} tokens are planned, {config.max_num_batched_tokens} allowed")
    return plan


def check_victim(chosen: RequestView, candidates: Sequence[Request], victims: VictimPolicy) -> Request:
    """The chosen one.

    Raises:
        PolicyError: it is none of the candidates.
    """
    for candidate in candidates:
        if candidate is chosen:
            return candidate
    raise PolicyError(f"victim={type(victims).__name__}: breaks the rule of victims: {chosen!r} is no candidate")


def break_rule(policy: SchedulingPolicy, rule: str, what: str) -> NoReturn:
    """Raise the policy's error, with its name and the rule."""
    raise PolicyError(f"scheduler={type(policy).__name__}: breaks the rule of {rule}: {what}")
