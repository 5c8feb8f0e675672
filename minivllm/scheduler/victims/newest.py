"""Whoever arrived last goes first."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulingPolicy
from minivllm.scheduler.victims.base import VictimPolicy


class Newest(VictimPolicy):
    """The newest arrival, whatever the policy thinks of it."""

    def choose(self, candidates: Sequence[RequestView], policy: SchedulingPolicy, now_s: float) -> RequestView:
        return max(candidates, key=lambda r: (r.arrival_s, r.request_id))
