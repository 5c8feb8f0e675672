"""First in, first out: the block whose content was cached first goes, however often it was used since."""

from __future__ import annotations

from minivllm.blocks.base import BlockHistory, PriorityEviction


class FIFO(PriorityEviction):
    """Order of first caching."""

    def priority(self, block: BlockHistory) -> tuple[float, ...]:
        return (block.published_at,)
