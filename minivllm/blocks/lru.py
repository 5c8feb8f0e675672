"""Least recently used: the block that has been evictable for the longest time goes."""

from __future__ import annotations

from minivllm.blocks.base import EvictionPolicy


class LRU(EvictionPolicy):
    """O(1) an operation: a dict keeps the order in which blocks became evictable.

    A request releases its blocks deepest first, so of one prefix the leaves go before the root.
    """

    def __init__(self) -> None:
        self._order: dict[int, None] = {}

    def on_release(self, block_id: int) -> None:
        self._order[block_id] = None

    def on_claim(self, block_id: int) -> None:
        del self._order[block_id]

    def evict(self) -> int:
        block_id = next(iter(self._order))
        del self._order[block_id]
        return block_id
