"""The eviction seam: which cached block loses its content when the pool has no free one.

A block is *evictable* while nobody refers to it and its content is still in the prefix index. The pool tells the
policy each time a block enters or leaves that state, and asks it for a victim.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from dataclasses import dataclass


class EvictionPolicy(ABC):
    """Order of eviction. Every method is called by the pool only, with block ids."""

    def on_publish(self, block_id: int) -> None:
        """New content entered the prefix index under this block (which is in use at that moment)."""

    def on_hit(self, block_id: int) -> None:
        """A request found the block by content; it may be in use or evictable."""

    @abstractmethod
    def on_release(self, block_id: int) -> None:
        """The block became evictable."""

    @abstractmethod
    def on_claim(self, block_id: int) -> None:
        """The block is in use again, its content kept: it is not evictable any more."""

    @abstractmethod
    def evict(self) -> int:
        """Choose an evictable block and forget it; the pool drops its content. At least one is evictable."""


@dataclass(slots=True)
class BlockHistory:
    """What a priority may look at. Counts are of this policy's own events, one tick an event."""

    published_at: int = 0
    last_used_at: int = 0
    num_hits: int = 0


class PriorityEviction(EvictionPolicy):
    """An eviction order given by a key: the evictable block with the smallest `priority` goes first.

    The key is taken when the block becomes evictable. O(log n) an operation: a heap with lazy deletion, rebuilt when
    stale entries outnumber live ones.
    """

    def __init__(self) -> None:
        self._tick = 0
        self._history: dict[int, BlockHistory] = {}
        # Evictable block -> the tick of its live heap entry.
        self._live: dict[int, int] = {}
        self._heap: list[tuple[tuple[float, ...], int, int]] = []

    @abstractmethod
    def priority(self, block: BlockHistory) -> tuple[float, ...]:
        """Smallest goes first; ties go to the block that became evictable first."""

    def _now(self) -> int:
        self._tick += 1
        return self._tick

    def on_publish(self, block_id: int) -> None:
        now = self._now()
        self._history[block_id] = BlockHistory(published_at=now, last_used_at=now)

    def on_hit(self, block_id: int) -> None:
        self._history[block_id].num_hits += 1

    def on_release(self, block_id: int) -> None:
        now = self._now()
        history = self._history[block_id]
        history.last_used_at = now
        self._live[block_id] = now
        heapq.heappush(self._heap, (self.priority(history), now, block_id))
        if len(self._heap) > 2 * len(self._live) + 64:
            self._heap = [entry for entry in self._heap if self._live.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def on_claim(self, block_id: int) -> None:
        del self._live[block_id]

    def evict(self) -> int:
        while True:
            _, at, block_id = heapq.heappop(self._heap)
            if self._live.get(block_id) == at:
                del self._live[block_id]
                del self._history[block_id]
                return block_id
