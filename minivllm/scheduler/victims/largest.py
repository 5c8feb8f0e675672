"""Whoever holds most goes first."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulingPolicy
from minivllm.scheduler.victims.base import VictimPolicy


class Largest(VictimPolicy):
    """The most K/V: one victim makes room for long, and has much to compute or to copy again. Ties go to the newest."""

    def choose(self, candidates: Sequence[RequestView], policy: SchedulingPolicy, now_s: float) -> RequestView:
        return max(candidates, key=lambda r: (r.num_computed_tokens, r.arrival_s, r.request_id))
