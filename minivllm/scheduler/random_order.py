"""Random order: a control. What a policy wins over this one comes of what it knows."""

from __future__ import annotations

from minivllm.request import RequestView
from minivllm.scheduler.base import KeyChanges, SchedulingPolicy
from minivllm.scheduler.chance import uniform


class RandomOrder(SchedulingPolicy):
    """Each request draws its place once; whoever runs stays.

    Args:
        seed: of the draws.
    """

    key_changes = KeyChanges.NEVER

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (uniform(self._seed, request.request_id), request.request_id)
