"""The seam of victims: who is preempted when blocks or seats are short."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulingPolicy


class VictimPolicy:
    """Base of all choices of victims."""

    def choose(self, candidates: Sequence[RequestView], policy: SchedulingPolicy, now_s: float) -> RequestView:
        """One of `candidates`, which are running and have not been served in this step.

        Args:
            candidates: one or more, in order of admission.
            policy: the scheduler's, whose `key` says who deserves most (smallest first).
            now_s: of the step.
        """
        raise NotImplementedError
