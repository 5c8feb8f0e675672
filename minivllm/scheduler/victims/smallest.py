"""Whoever holds least goes first."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulingPolicy
from minivllm.scheduler.victims.base import VictimPolicy


class Smallest(VictimPolicy):
    """The least K/V: cheap to bring back, and soon not enough. Ties go to the oldest."""

    def choose(self, candidates: Sequence[RequestView], policy: SchedulingPolicy, now_s: float) -> RequestView:
        return min(candidates, key=lambda r: (r.num_computed_tokens, r.arrival_s, r.request_id))
