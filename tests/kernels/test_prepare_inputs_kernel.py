"""The device-resident store against its definition: padding anywhere, blocks that are not there, more than one tile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from minivllm_kernels.prepare_inputs.kernel import (
    gather_tokens,
    prepare_decode,
    scatter_table_,
    store_rows_,
    store_tokens_,
)
from minivllm_kernels.prepare_inputs.reference import (
    gather_tokens_reference,
    prepare_decode_reference,
    scatter_table_reference_,
    store_rows_reference_,
    store_tokens_reference_,
)
from minivllm_kernels.prepare_inputs.verification.kernel import prepare_verification
from minivllm_kernels.prepare_inputs.verification.reference import prepare_verification_reference

# Where a GPU is, it is what runs them.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# What no function may leave where it writes, nor touch where it does not.
POISON = -77


@pytest.fixture(autouse=True, scope="module")
def _on_the_device() -> Iterator[None]:
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)


def _make_store(max_rows: int, max_len: int, block_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens, and a table whose rows end in -1 at different columns."""
    draws = torch.Generator(DEVICE).manual_seed(seed)
    tokens = torch.randint(0, 150_000, (max_rows, max_len + 1), generator=draws, dtype=torch.int32)
    columns = -(-max_len // block_size)
    table = torch.randperm(max_rows * columns, generator=draws).view(max_rows, columns).to(torch.int32)
    lengths = torch.randint(1, columns + 1, (max_rows, 1), generator=draws)
    return tokens, table.where(torch.arange(columns) < lengths, -1)


def _poison(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, POISON, dtype=dtype)


def _prepared(
    prepare: Callable[..., None], tokens: Tensor, table: Tensor, rows: Tensor, positions: Tensor, size: int
) -> dict[str, Tensor]:
    outputs = {name: _poison(len(rows), dtype=torch.int64) for name in ("token_ids", "out_positions", "slot_mapping")}
    outputs["context_lens"] = _poison(len(rows), dtype=torch.int32)
    outputs["batch_table"] = _poison(len(rows), table.shape[1], dtype=torch.int32)
    prepare(tokens, table, rows, positions, block_size=size, **outputs)
    return outputs


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 47)), min_size=1, max_size=6),
    st.sampled_from([1, 4, 16, 64]),
    st.integers(0, 99),
)
def test_a_decode_step_is_prepared_as_defined(batch: list[tuple[int, int]], block_size: int, seed: int) -> None:
    tokens, table = _make_store(5, 47, block_size, seed)
    rows = torch.tensor([row for row, _ in batch], dtype=torch.int32)
    # Position 47 of 47 is that of a request which has just reached the longest length: a token, and no block.
    positions = torch.tensor([position for _, position in batch], dtype=torch.int32)
    table_before = table.clone()
    got = _prepared(prepare_decode, tokens, table, rows, positions, block_size)
    wanted = _prepared(prepare_decode_reference, tokens, table, rows, positions, block_size)
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name
    assert torch.equal(table, table_before)


def test_padding_is_not_looked_at() -> None:
    tokens, table = _make_store(2, 8, 4, seed=0)
    rows = torch.tensor([-1, 1], dtype=torch.int32)
    positions = torch.tensor([2**30, 0], dtype=torch.int32)
    got = _prepared(prepare_decode, tokens, table, rows, positions, 4)
    assert [got[name][0].item() for name in ("token_ids", "out_positions", "slot_mapping")] == [0, 0, -1]
    assert got["context_lens"].tolist() == [0, 1]
    assert got["batch_table"][0].tolist() == [POISON, POISON]


def test_tables_wider_than_a_program_are_copied_up_to_the_context() -> None:
    tokens, table = _make_store(3, 2100, 1, seed=3)
    table = torch.where(table < 0, 5, table)
    rows, positions = torch.tensor([2, 0, 1], dtype=torch.int32), torch.tensor([2099, 1023, 1024], dtype=torch.int32)
    got = _prepared(prepare_decode, tokens, table, rows, positions, 1)
    wanted = _prepared(prepare_decode_reference, tokens, table, rows, positions, 1)
    assert torch.equal(got["batch_table"], wanted["batch_table"])
    assert (got["batch_table"] == POISON).sum(dim=1).tolist() == [0, 2100 - 1024, 2100 - 1025]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 127, 130])
def test_packed_tokens_are_gathered_as_defined(num_tokens: int, dtype: torch.dtype) -> None:
    tokens, table = _make_store(6, 40, 8, seed=num_tokens)
    draws = torch.Generator(DEVICE).manual_seed(num_tokens)
    rows = torch.randint(-1, 6, (num_tokens,), generator=draws, dtype=torch.int32)
    rows[-1] = -1 if num_tokens > 1 else 3
    positions = torch.randint(0, 41, (num_tokens,), generator=draws).to(dtype)
    got, wanted = (
        {name: _poison(num_tokens + 3, dtype=torch.int64) for name in ("token_ids", "slot_mapping")} for _ in range(2)
    )
    for gather, outputs in ((gather_tokens, got), (gather_tokens_reference, wanted)):
        views = {name: tensor[:num_tokens] for name, tensor in outputs.items()}
        gather(tokens, table, rows, positions, block_size=8, **views)
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("count", [1, 5, 131])
def test_sampled_tokens_are_stored_where_they_belong(count: int) -> None:
    tokens, _ = _make_store(140, 12, 4, seed=1)
    draws = torch.Generator(DEVICE).manual_seed(count)
    rows = torch.randperm(140, generator=draws)[:count].to(torch.int32)
    rows[1::3] = -1
    positions = torch.randint(0, 13, (count,), generator=draws, dtype=torch.int32)
    sampled = torch.randint(-1, 150_000, (count,), generator=draws)
    sampled[0] = -1
    wanted = tokens.clone()
    store_tokens_(tokens, rows, positions, sampled)
    store_tokens_reference_(wanted, rows, positions, sampled)
    assert torch.equal(tokens, wanted)
    assert tokens[rows[0], positions[0]] == 0


@pytest.mark.parametrize("count", [1, 5, 131])
def test_tables_are_updated_in_single_entries(count: int) -> None:
    _, table = _make_store(40, 32, 4, seed=2)
    draws = torch.Generator(DEVICE).manual_seed(count)
    places = torch.randperm(table.numel(), generator=draws)[:count].to(torch.int32)
    rows, columns = places // table.shape[1], places % table.shape[1]
    rows[1::4] = -1
    # -1 is a value as any other: the block is taken back.
    values = torch.randint(-1, 1000, (count,), generator=draws, dtype=torch.int32)
    values[0] = -1
    wanted = table.clone()
    scatter_table_(table, rows, columns, values)
    scatter_table_reference_(wanted, rows, columns, values)
    assert torch.equal(table, wanted)
    assert table[rows[0], columns[0]] == -1


def test_a_batch_without_rows_is_nothing() -> None:
    tokens, table = _make_store(2, 8, 4, seed=0)
    before, none = (tokens.clone(), table.clone()), torch.empty(0, dtype=torch.int32)
    _prepared(prepare_decode, tokens, table, none, none, 4)
    gather_tokens(tokens, table, none, none, block_size=4, token_ids=none.long(), slot_mapping=none.long())
    store_tokens_(tokens, none, none, none.long())
    scatter_table_(table, none, none, none)
    assert torch.equal(tokens, before[0]) and torch.equal(table, before[1])


@given(
    batch=st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 35), st.integers(0, 16)), min_size=1, max_size=6),
    num_queries=st.integers(1, 17),
    block_size=st.sampled_from([1, 4, 64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_a_verification_is_prepared_as_defined(
    batch: list[tuple[int, int, int]], num_queries: int, block_size: int, seed: int
) -> None:
    """Requests with fewer drafts than there is room for, and contexts that queries of nobody carry out of the table."""
    tokens, table = _make_store(5, 36 + num_queries, block_size, seed)
    table = table[:, : -(-37 // block_size)]
    rows, positions, counts = (torch.tensor(column, dtype=torch.int32) for column in zip(*batch, strict=True))
    counts = counts.clamp(max=torch.minimum(torch.tensor(num_queries - 1), 36 - positions)).int()
    size = len(batch) * num_queries
    found = []
    for prepare in (prepare_verification, prepare_verification_reference):
        outputs = {name: _poison(size, dtype=torch.int64) for name in ("token_ids", "out_positions", "slot_mapping")}
        outputs |= {name: _poison(size, dtype=torch.int32) for name in ("query_rows", "targets")}
        outputs["context_lens"] = _poison(len(batch), dtype=torch.int32)
        outputs["batch_table"] = _poison(len(batch), -(-(37 + num_queries) // block_size), dtype=torch.int32)
        prepare(tokens, table, rows, positions, counts, block_size=block_size, **outputs)
        found.append(outputs)
    for name, wanted in found[1].items():
        assert torch.equal(found[0][name], wanted), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_kept_of_tokens_goes_to_their_slots_alone(dtype: torch.dtype) -> None:
    rows, slots = torch.randn(5, 1030).to(dtype), torch.tensor([4, -1, 0, 7, -1])
    target = _poison(9, 1030, dtype=dtype)
    wanted = target.clone()
    store_rows_(target, slots, rows)
    store_rows_reference_(wanted, slots, rows)
    assert torch.equal(target, wanted) and (target[1] == POISON).all()
