"""Last come, first served: a control, the worst that an order by arrival can do to those who wait."""

from __future__ import annotations

from minivllm.request import RequestView
from minivllm.scheduler.base import KeyChanges, SchedulingPolicy


class Reverse(SchedulingPolicy):
    """FCFS turned round; whoever runs stays."""

    key_changes = KeyChanges.NEVER

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (-request.arrival_s, -request.request_id)
