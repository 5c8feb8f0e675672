"""Keep in host memory and copy back."""

from __future__ import annotations

from minivllm.request import RequestView
from minivllm.scheduler.preemptions.base import PreemptionMode


class Swap(PreemptionMode):
    """A victim's blocks are copied to host memory, and back when it is let in again; blocks that are still cached as a
    prefix by then are taken over instead. Nothing is computed twice while host memory has room.

    Source: vLLM (arXiv 2309.06180), section 4.5.
    """

    def swaps(self, request: RequestView, num_blocks: int) -> bool:
        return True
