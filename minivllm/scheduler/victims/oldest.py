"""Whoever arrived first goes first."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulingPolicy
from minivllm.scheduler.victims.base import VictimPolicy


class Oldest(VictimPolicy):
    """The oldest arrival: a control, as bad for the tail as it looks."""

    def choose(self, candidates: Sequence[RequestView], policy: SchedulingPolicy, now_s: float) -> RequestView:
        return min(candidates, key=lambda r: (r.arrival_s, r.request_id))
