"""A policy for tests of preemption: everyone takes turns, so that requests leave and come back in the same step."""

from __future__ import annotations

from minivllm.request import RequestView
from minivllm.scheduler.base import KeyChanges, SchedulingPolicy


class Turns(SchedulingPolicy):
    """Whoever has had fewer pairs of tokens goes first, and puts others out."""

    preemptive = True
    key_changes = KeyChanges.WHEN_SERVED

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (request.num_output_tokens // 2, -request.request_id)
