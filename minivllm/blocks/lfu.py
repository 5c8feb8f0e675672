"""Least frequently used: the block with the fewest hits goes, the least recently used among equals."""

from __future__ import annotations

from minivllm.blocks.base import BlockHistory, PriorityEviction


class LFU(PriorityEviction):
    """Order of hits since the content was cached."""

    def priority(self, block: BlockHistory) -> tuple[float, ...]:
        return (block.num_hits, block.last_used_at)
