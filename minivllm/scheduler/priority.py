"""Priority classes with preemption, as vLLM's `scheduling_policy=priority`: the lowest number first, and within a
class first come, first served."""

from __future__ import annotations

from minivllm.request import RequestView
from minivllm.scheduler.base import KeyChanges, SchedulingPolicy


class Priority(SchedulingPolicy):
    """Serve the most important; it takes the seat and the blocks of whoever matters less. The lowest class starves
    while the others fill the engine: see `Aging` for one that does not let that happen."""

    preemptive = True
    key_changes = KeyChanges.NEVER

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (request.priority, request.arrival_s, request.request_id)
