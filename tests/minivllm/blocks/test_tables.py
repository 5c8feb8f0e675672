"""Tables that grow for drafts and shrink when they are rejected."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from minivllm.blocks.lru import LRU
from minivllm.blocks.pool import BlockPool
from minivllm.blocks.tables import BlockTables
from minivllm.request import Request
from minivllm.sampling_params import SamplingParams


def _make_tables(num_blocks: int, block_size: int) -> BlockTables:
    return BlockTables(BlockPool(num_blocks, LRU()), block_size, prefix_caching=True)


def _make_request(num_tokens: int) -> Request:
    request = Request(
        request_id=1,
        prompt_token_ids=list(range(num_tokens)),
        sampling_params=SamplingParams(),
        sampling_seed=0,
        arrival_s=0.0,
        max_total_tokens=100,
    )
    return request


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    block_size=st.sampled_from([1, 2, 4, 8]),
    num_tokens=st.integers(1, 20),
    rounds=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6),
)
def test_trim_gives_back_what_grow_took_for_rejected_drafts(block_size, num_tokens, rounds) -> None:
    tables = _make_tables(64, block_size)
    tables.open(1, (), num_tokens, 0)
    for num_drafts, num_accepted in rounds:
        kept = list(tables.table(1))[: tables.num_blocks_for(num_tokens)]
        tables.grow(1, num_tokens + num_drafts)
        assert len(tables.table(1)) == tables.num_blocks_for(num_tokens + num_drafts)
        num_tokens += min(num_accepted, num_drafts)
        tables.trim(1, num_tokens)
        assert len(tables.table(1)) == tables.num_blocks_for(num_tokens) == tables.pool.num_used
        assert list(tables.table(1))[: len(kept)] == kept
        tables.check()
    tables.close(1)
    assert tables.pool.num_available == 64


def test_trim_leaves_a_table_alone_that_is_short_enough() -> None:
    tables = _make_tables(8, 4)
    tables.open(1, (), 6, 0)
    before = list(tables.table(1))
    tables.trim(1, 5)
    tables.trim(1, 50)
    assert list(tables.table(1)) == before


def test_trim_never_takes_a_published_block() -> None:
    tables = _make_tables(8, 4)
    request = _make_request(9)
    tables.open(1, (), 9, 0)
    request.num_computed_tokens = 8
    tables.publish(request)
    tables.trim(1, 8)
    assert len(tables.table(1)) == 2
    with pytest.raises(AssertionError, match="of rejected drafts is published"):
        tables.trim(1, 4)


def test_a_trimmed_block_is_free_and_not_cached() -> None:
    tables = _make_tables(4, 2)
    tables.open(1, (), 3, 0)
    tables.grow(1, 8)
    assert tables.pool.num_available == 0
    tables.trim(1, 3)
    assert tables.pool.num_available == 2 and tables.pool.num_evictable == 0
