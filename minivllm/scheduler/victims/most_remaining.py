"""Whoever has most ahead goes first."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulingPolicy
from minivllm.scheduler.victims.base import VictimPolicy


class MostRemaining(VictimPolicy):
    """The most output still to come, by the prediction. Ties go to the newest."""

    def choose(self, candidates: Sequence[RequestView], policy: SchedulingPolicy, now_s: float) -> RequestView:
        return max(
            candidates, key=lambda r: (r.predicted_output_tokens - r.num_output_tokens, r.arrival_s, r.request_id)
        )
