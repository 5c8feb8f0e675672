"""The seam of preemption: whether a victim's K/V is kept in host memory, or forgotten and computed again."""

from __future__ import annotations

from abc import ABC, abstractmethod

from minivllm.request import RequestView


class PreemptionMode(ABC):
    """Base of all modes. Whatever it answers, a victim that finds too few free slots in host memory is computed again;
    `Swapping.num_fallbacks` counts them."""

    @abstractmethod
    def swaps(self, request: RequestView, num_blocks: int) -> bool:
        """Whether this victim is swapped out.

        Args:
            request: about to be preempted.
            num_blocks: K/V blocks to copy out now, and back in later; 1 or more.
        """
