"""Block tables: which blocks hold the K/V of which request. Sharing, growing, copy-on-write and publishing."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.blocks.pool import BlockPool
from minivllm.blocks.prefix import extend_keys
from minivllm.plan import BlockCopy
from minivllm.request import Request


class BlockTables:
    """The tables of all requests that hold blocks, over one pool.

    Args:
        pool: where blocks come from.
        block_size: tokens a block.
        prefix_caching: publish full blocks and look prompts up.
    """

    def __init__(self, pool: BlockPool, block_size: int, prefix_caching: bool) -> None:
        self.pool = pool
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._tables: dict[int, list[int]] = {}
        # Content keys of a request's full blocks, made once a block and kept from arrival to end.
        self._keys: dict[int, list[bytes]] = {}
        self._num_published: dict[int, int] = {}

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def table(self, request_id: int) -> Sequence[int]:
        return self._tables[request_id]

    def holds(self, request_id: int) -> bool:
        return request_id in self._tables

    def find_prefix(self, request: Request) -> list[int]:
        """Blocks that hold the longest cached prefix of a waiting request; no reference is taken.

        The newest token is never part of it: a query of at least one token always remains, so that there is
        something to sample from.
        """
        if not self.prefix_caching:
            return []
        keys = self._keys.setdefault(request.request_id, [])
        found: list[int] = []
        for index in range((request.num_tokens - 1) // self.block_size):
            # Keys are made as far as blocks are found: most prompts miss at their first.
            if index == len(keys):
                extend_keys(keys, request.token_ids, (index + 1) * self.block_size, self.block_size)
            block_id = self.pool.lookup(keys[index])
            if block_id is None:
                break
            found.append(block_id)
        return found

    def blocks_to_open(self, shared: Sequence[int], num_tokens: int, num_kept: int) -> int:
        """Available blocks that `open` would use up.

        Args:
            shared: blocks to take over, from `find_prefix` or a sibling's table.
            num_tokens: positions to make room for.
            num_kept: positions of `shared` that stay as they are; one after that, in a shared block, costs a copy.
        """
        revived = sum(self.pool.references(block_id) == 0 for block_id in shared)
        copied = num_kept < len(shared) * self.block_size
        return self.num_blocks_for(num_tokens) - len(shared) + revived + copied

    def open(self, request_id: int, shared: Sequence[int], num_tokens: int, num_kept: int) -> None:
        """Start a table: share some blocks, allocate the rest for `num_tokens` positions. Arguments as above."""
        assert request_id not in self._tables, f"request {request_id} holds blocks already"
        # Sharing first: an allocation must not evict what is about to be shared.
        for block_id in shared:
            self.pool.share(block_id)
        table = list(shared)
        self._tables[request_id] = table
        # A shared block that will be copied is a new block, not a published one.
        self._num_published[request_id] = num_kept // self.block_size
        while len(table) * self.block_size < num_tokens:
            table.append(self.pool.allocate())

    def blocks_to_grow(self, request_id: int, num_tokens: int) -> int:
        return max(0, self.num_blocks_for(num_tokens) - len(self._tables[request_id]))

    def grow(self, request_id: int, num_tokens: int) -> tuple[int, ...]:
        """Make room for `num_tokens` positions; the new blocks' ids."""
        table = self._tables[request_id]
        first = len(table)
        while len(table) * self.block_size < num_tokens:
            table.append(self.pool.allocate())
        return tuple(table[first:])

    def trim(self, request_id: int, num_tokens: int) -> None:
        """Give back the blocks behind the first `num_tokens` positions: those of rejected drafts, never published."""
        table = self._tables[request_id]
        while len(table) > self.num_blocks_for(num_tokens):
            block_id = table.pop()
            assert not self.pool.is_published(block_id), f"block {block_id} of rejected drafts is published"
            self.pool.release(block_id)

    def unshare(self, request_id: int, start: int, end: int) -> list[BlockCopy]:
        """Give the request blocks of its own for positions `[start, end)`, which it is about to write.

        Returns the copies to make. Blocks that hold nothing before `start` are exchanged without one.
        """
        table = self._tables[request_id]
        copies = []
        for index in range(start // self.block_size, self.num_blocks_for(end)):
            source = table[index]
            if self.pool.references(source) > 1:
                table[index] = self.pool.allocate()
                self.pool.release(source)
                if index * self.block_size < start:
                    copies.append(BlockCopy(source=source, target=table[index]))
        return copies

    def publish(self, request: Request) -> None:
        """Make the full blocks of `[0, num_computed_tokens)` findable."""
        if not self.prefix_caching:
            return
        request_id = request.request_id
        num_full = request.num_computed_tokens // self.block_size
        first = self._num_published[request_id]
        if num_full <= first:
            return
        keys = self._keys.setdefault(request_id, [])
        extend_keys(keys, request.token_ids, request.num_computed_tokens, self.block_size)
        table = self._tables[request_id]
        for index in range(first, num_full):
            self.pool.publish(table[index], keys[index])
        self._num_published[request_id] = num_full

    def close(self, request_id: int) -> None:
        """Give all blocks back, deepest first, so that eviction takes leaves before roots."""
        for block_id in reversed(self._tables.pop(request_id)):
            self.pool.release(block_id)
        del self._num_published[request_id]

    def forget(self, request_id: int) -> None:
        """The request has ended: drop its keys."""
        assert request_id not in self._tables
        self._keys.pop(request_id, None)

    def num_slots_unused(self, running: Sequence[Request]) -> int:
        """Slots of held blocks without K/V. Shared blocks are full but for a moment, so private tails decide."""
        num_slots = self.block_size * sum(map(len, self._tables.values()))
        return num_slots - sum([request.num_computed_tokens for request in running])

    def check(self) -> None:
        """Assert that the pool's references are exactly the tables' entries."""
        self.pool.check()
        counts = [0] * self.pool.num_blocks
        for table in self._tables.values():
            assert len(set(table)) == len(table), "a block stands twice in one table"
            for block_id in table:
                counts[block_id] += 1
        for block_id, count in enumerate(counts):
            assert count == self.pool.references(block_id), f"block {block_id} leaks"
