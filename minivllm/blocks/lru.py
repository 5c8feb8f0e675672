"""Least recently used: the block that has been evictable for the longest time goes."""

from __future__ import annotations

from collections import OrderedDict

from minivllm.blocks.base import EvictionPolicy


class LRU(EvictionPolicy):
    """O(1) an operation: an ordered dict keeps the order in which blocks became evictable. (A plain one would look for
    its first entry among all that were deleted before it.)

    A request releases its blocks deepest first, so of one prefix the leaves go before the root.
    """

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def on_release(self, block_id: int) -> None:
        self._order[block_id] = None

    def on_claim(self, block_id: int) -> None:
        del self._order[block_id]

    def evict(self) -> int:
        block_id, _ = self._order.popitem(last=False)
        return block_id
