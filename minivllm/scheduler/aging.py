"""SRPT that forgives the long their length as time goes by, so that nobody starves.

A request's urgency is its predicted remaining output less a credit for each second since it came. The credit grows at
the same rate for everybody, so the order of two requests does not change by waiting, and the key needs no clock:
remaining + rate * arrival. This is Jackson's dynamic priority ("Waiting-time distributions for queues with dynamic
priorities", Naval Research Logistics Quarterly 1962): arrival plus an urgency number.
"""

from __future__ import annotations

from minivllm.component import require
from minivllm.request import RequestView
from minivllm.scheduler.base import KeyChanges, SchedulingPolicy
from minivllm.scheduler.remaining import remaining_output_tokens


class Aging(SchedulingPolicy):
    """A request is overtaken by later ones only for as long as its remaining output is worth in seconds.

    Args:
        tokens_per_s: remaining output tokens forgiven for each second since arrival. 0 is SRPT, and a great number is
            FCFS with preemption; whoever comes `remaining / tokens_per_s` seconds later cannot overtake.
    """

    preemptive = True
    key_changes = KeyChanges.WHEN_SERVED

    def __init__(self, tokens_per_s: float = 10.0) -> None:
        valid = isinstance(tokens_per_s, (int, float)) and tokens_per_s >= 0
        require(valid, "scheduler.tokens_per_s", tokens_per_s, "0 or more")
        self._tokens_per_s = tokens_per_s

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        urgency = remaining_output_tokens(request) + self._tokens_per_s * request.arrival_s
        return (urgency, request.arrival_s, request.request_id)
