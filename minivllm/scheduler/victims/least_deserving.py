"""Whoever the policy would serve last goes first."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulingPolicy
from minivllm.scheduler.victims.base import VictimPolicy


class LeastDeserving(VictimPolicy):
    """The worst key of the scheduling policy. Under first come, first served it is the newest: vLLM (arXiv 2309.06180),
    section 4.5."""

    def choose(self, candidates: Sequence[RequestView], policy: SchedulingPolicy, now_s: float) -> RequestView:
        return max(candidates, key=lambda request: policy.key(request, now_s))
