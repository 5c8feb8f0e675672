"""The block pool: it alone knows which block is free, how many refer to it, and what content is cached where.

A block is in one of three states:

    free        no reference, no content of interest
    in use      referred to by one table or more; its content may be published under a key
    evictable   no reference, but published: a lookup can bring it back, an allocation can take it
"""

from __future__ import annotations

from minivllm.blocks.base import EvictionPolicy


class BlockPool:
    """Blocks `[0, num_blocks)` with reference counts and a content index.

    Args:
        num_blocks: at least 1.
        eviction: chooses among evictable blocks; the pool owns it.
    """

    def __init__(self, num_blocks: int, eviction: EvictionPolicy) -> None:
        assert num_blocks >= 1
        self.num_blocks = num_blocks
        self.num_evictions = 0
        self._eviction = eviction
        self._references = [0] * num_blocks
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # A stack; low ids come first, so that a short run stays in a small part of memory.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_evictable = 0

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can still give: free and evictable."""
        return len(self._free) + self._num_evictable

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    @property
    def num_evictable(self) -> int:
        return self._num_evictable

    def references(self, block_id: int) -> int:
        return self._references[block_id]

    def allocate(self) -> int:
        """A block of unknown content with one reference; evicts where none is free."""
        if self._free:
            block_id = self._free.pop()
        else:
            block_id = self._evict()
        self._references[block_id] = 1
        return block_id

    def share(self, block_id: int) -> None:
        """One more reference to a block in use or evictable."""
        if self._references[block_id] == 0:
            assert self._key_of[block_id] is not None, f"block {block_id} is free: there is nothing to share"
            self._eviction.on_claim(block_id)
            self._num_evictable -= 1
        self._references[block_id] += 1

    def release(self, block_id: int) -> None:
        """One reference less; the last one makes the block evictable where it is published, else free."""
        assert self._references[block_id] > 0, f"block {block_id} is released more often than taken"
        self._references[block_id] -= 1
        if self._references[block_id] == 0:
            if self._key_of[block_id] is None:
                self._free.append(block_id)
            else:
                self._num_evictable += 1
                self._eviction.on_release(block_id)

    def publish(self, block_id: int, key: bytes) -> None:
        """Make the content of a block in use findable. The first block of some content stays the published one."""
        assert self._references[block_id] > 0
        if self._key_of[block_id] is None and key not in self._block_of:
            self._key_of[block_id] = key
            self._block_of[key] = block_id
            self._eviction.on_publish(block_id)

    def is_published(self, block_id: int) -> bool:
        return self._key_of[block_id] is not None

    def lookup(self, key: bytes) -> int | None:
        """The block that holds this content, or None. No reference is taken."""
        return self._block_of.get(key)

    def record_hit(self, block_id: int) -> None:
        """A request took the block over from the index, or from a sibling, whose last block may be unpublished."""
        if self._key_of[block_id] is not None:
            self._eviction.on_hit(block_id)

    def drop_cached(self) -> None:
        """Forget all published content: evictable blocks become free, blocks in use become private."""
        num_evictions = self.num_evictions
        for _ in range(self._num_evictable):
            self._free.append(self._evict())
        # Dropped on demand, not for want of room.
        self.num_evictions = num_evictions
        # What is left belongs to blocks in use. Their policy history goes when the policy publishes them anew.
        for key, block_id in self._block_of.items():
            assert self._key_of[block_id] == key
            self._key_of[block_id] = None
        self._block_of.clear()

    def _evict(self) -> int:
        assert self._num_evictable > 0, "the pool is exhausted: ask num_available first"
        block_id = self._eviction.evict()
        self._num_evictable -= 1
        self.num_evictions += 1
        key = self._key_of[block_id]
        assert key is not None and self._references[block_id] == 0, f"block {block_id} was not evictable"
        del self._block_of[key]
        self._key_of[block_id] = None
        return block_id

    def check(self) -> None:
        """Assert every invariant. O(num_blocks): for tests and for an idle engine."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        evictable = {b for b in range(self.num_blocks) if self._references[b] == 0 and self._key_of[b] is not None}
        assert len(evictable) == self._num_evictable, "the count of evictable blocks is off"
        assert not free & evictable
        for block_id in range(self.num_blocks):
            assert self._references[block_id] >= 0
            idle = self._references[block_id] == 0
            assert idle == (block_id in free or block_id in evictable), f"block {block_id} is lost"
        published = {b: key for b, key in enumerate(self._key_of) if key is not None}
        assert {key: b for b, key in published.items()} == self._block_of, "index and blocks disagree"
