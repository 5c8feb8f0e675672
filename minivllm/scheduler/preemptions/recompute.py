"""Forget and compute again."""

from __future__ import annotations

from minivllm.request import RequestView
from minivllm.scheduler.preemptions.base import PreemptionMode


class Recompute(PreemptionMode):
    """A victim's K/V is given up; what of it is still cached as a prefix when it comes back is not computed again.

    Source: vLLM (arXiv 2309.06180), section 4.5.
    """

    def swaps(self, request: RequestView, num_blocks: int) -> bool:
        return False
