"""The pool's states, and its eviction policies against slow models of themselves."""

from __future__ import annotations

import random

import pytest

from minivllm.blocks.fifo import FIFO
from minivllm.blocks.lfu import LFU
from minivllm.blocks.lru import LRU
from minivllm.blocks.pool import BlockPool
from minivllm.blocks.prefix import block_key, extend_keys


def _key(number: int) -> bytes:
    return block_key(b"", [number])


def test_a_released_block_is_found_again_by_content_until_it_is_evicted() -> None:
    pool = BlockPool(2, LRU())
    block = pool.allocate()
    pool.publish(block, _key(1))
    pool.release(block)
    assert pool.num_available == 2 and pool.lookup(_key(1)) == block
    pool.share(block)
    assert pool.num_available == 1 and pool.references(block) == 1
    pool.release(block)
    taken = {pool.allocate(), pool.allocate()}
    assert taken == {0, 1} and pool.lookup(_key(1)) is None and pool.num_evictions == 1
    pool.check()


def test_free_blocks_go_before_cached_ones() -> None:
    pool = BlockPool(3, LRU())
    block = pool.allocate()
    pool.publish(block, _key(1))
    pool.release(block)
    pool.allocate()
    pool.allocate()
    assert pool.lookup(_key(1)) == block and pool.num_evictions == 0


def test_the_first_block_of_some_content_stays_the_published_one() -> None:
    pool = BlockPool(2, LRU())
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, _key(1))
    pool.publish(second, _key(1))
    pool.release(second)
    assert pool.lookup(_key(1)) == first and pool.num_evictable == 0
    pool.check()


def test_releasing_twice_is_caught() -> None:
    pool = BlockPool(1, LRU())
    block = pool.allocate()
    pool.release(block)
    with pytest.raises(AssertionError, match="more often than taken"):
        pool.release(block)


def test_sharing_a_free_block_is_caught() -> None:
    with pytest.raises(AssertionError, match="nothing to share"):
        BlockPool(1, LRU()).share(0)


def test_dropping_the_cache_leaves_blocks_in_use_alone() -> None:
    pool = BlockPool(3, LFU())
    used, idle = pool.allocate(), pool.allocate()
    pool.publish(used, _key(1))
    pool.publish(idle, _key(2))
    pool.release(idle)
    pool.drop_cached()
    assert pool.lookup(_key(1)) is None and pool.lookup(_key(2)) is None
    assert pool.num_used == 1 and pool.num_evictions == 0
    pool.release(used)
    pool.check()
    assert pool.num_available == 3 and pool.num_evictable == 0


class _Model:
    """Each policy as one line over full histories."""

    CHOICES = {
        LRU: lambda h: h["released"],
        FIFO: lambda h: (h["published"], h["released"]),
        LFU: lambda h: (h["hits"], h["released"]),
    }

    def __init__(self, kind: type) -> None:
        self.choose = self.CHOICES[kind]
        self.blocks: dict[int, dict[str, int]] = {}
        self.idle: set[int] = set()

    def victim(self) -> int:
        return min(self.idle, key=lambda b: self.choose(self.blocks[b]))


@pytest.mark.parametrize("kind", [LRU, FIFO, LFU])
def test_victims_are_those_of_the_definition(kind: type) -> None:
    """20,000 random events, the victim predicted each time from full histories."""
    chance = random.Random(0)
    policy, model = kind(), _Model(kind)
    in_use: set[int] = set()
    now = next_block = num_victims = 0
    for now in range(20_000):
        event = chance.choice(["publish", "release", "release", "hit", "evict"])
        if event == "publish":
            policy.on_publish(next_block)
            model.blocks[next_block] = {"published": now, "hits": 0, "released": now}
            in_use.add(next_block)
            next_block += 1
        elif event == "release" and in_use:
            block = chance.choice(sorted(in_use)[-8:])
            in_use.remove(block)
            model.blocks[block]["released"] = now
            model.idle.add(block)
            policy.on_release(block)
        elif event == "hit" and model.idle:
            block = chance.choice(sorted(model.idle))
            model.idle.remove(block)
            in_use.add(block)
            model.blocks[block]["hits"] += 1
            policy.on_claim(block)
            policy.on_hit(block)
        elif event == "evict" and model.idle:
            wanted = model.victim()
            model.idle.remove(wanted)
            assert policy.evict() == wanted
            num_victims += 1
    assert num_victims > 1000


def test_keys_stand_for_everything_before_them() -> None:
    one: list[bytes] = []
    extend_keys(one, [1, 2, 3, 4, 5], 5, 2)
    other: list[bytes] = []
    extend_keys(other, [9, 2, 3, 4], 4, 2)
    assert len(one) == len(other) == 2 and one[1] != other[1]
    grown = one[:1]
    extend_keys(grown, [1, 2, 3, 4, 5], 5, 2)
    assert grown == one
