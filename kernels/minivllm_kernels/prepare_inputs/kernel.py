"""How a GPU prepares a step: gathers and scatters on its own rows, so that the host sends a few int32 a request.

None of them has bytes to speak of: 256 requests at 32k tokens in blocks of 16 copy 2 MB of tables twice over the bus,
1 us of an H200, and all else is under 100 KB. Time is a launch (about 1.3 us in a CUDA graph) and two loads that wait
for each other (row, then token and block: about 1.5 us); so tables are copied by many programs without a loop, and what
a program needs is loaded before any of it is used.

The pointers of a step's index vectors are not specialised on alignment: they may be slices of one staging buffer, whose
offsets change with the batch, and one thread an element gains nothing by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from minivllm_kernels.ahead_of_time import Specialisation

# Entries of a table that a program copies: 8 a thread of 4 warps, two loads of 16 bytes.
COLUMNS = 1024
# Index entries of a program, one a thread.
_ENTRIES = 128


@triton.jit
def slot_of(block_table_ptr, row, position, is_real, num_columns, stride_table, BLOCK_SIZE: tl.constexpr):
    """block * BLOCK_SIZE + offset, -1 where the table has no block."""
    column = position // BLOCK_SIZE
    block = tl.load(block_table_ptr + row * stride_table + column, mask=is_real & (column < num_columns), other=-1)
    return tl.where(block >= 0, block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE, -1)


@triton.jit(do_not_specialize_on_alignment=["rows_ptr", "positions_ptr"])
def _prepare_decode(
    tokens_ptr,
    block_table_ptr,
    rows_ptr,
    positions_ptr,
    token_ids_ptr,
    out_positions_ptr,
    slot_mapping_ptr,
    context_lens_ptr,
    batch_table_ptr,
    num_columns,
    stride_tokens,
    stride_table,
    stride_batch_table,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    pid_b = tl.program_id(0).to(tl.int64)
    pid_column = tl.program_id(1)
    row = tl.load(rows_ptr + pid_b).to(tl.int64)
    position = tl.load(positions_ptr + pid_b)
    is_real = row >= 0
    # [0, context) of this request, 0 for padding.
    context = tl.where(is_real, position + 1, 0)
    offs = pid_column * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = offs < tl.minimum(tl.cdiv(context, BLOCK_SIZE), num_columns)
    blocks = tl.load(block_table_ptr + row * stride_table + offs, mask=mask)
    if pid_column == 0:
        token = tl.load(tokens_ptr + row * stride_tokens + position, mask=is_real, other=0)
        slot = slot_of(block_table_ptr, row, position, is_real, num_columns, stride_table, BLOCK_SIZE)
        tl.store(token_ids_ptr + pid_b, token.to(tl.int64))
        tl.store(slot_mapping_ptr + pid_b, slot)
        tl.store(out_positions_ptr + pid_b, tl.where(is_real, position, 0).to(tl.int64))
        tl.store(context_lens_ptr + pid_b, context)
    tl.store(batch_table_ptr + pid_b * stride_batch_table + offs, blocks, mask=mask)


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["token_rows_ptr", "positions_ptr"])
def _gather_tokens(
    tokens_ptr,
    block_table_ptr,
    token_rows_ptr,
    positions_ptr,
    token_ids_ptr,
    slot_mapping_ptr,
    num_tokens,
    num_columns,
    stride_tokens,
    stride_table,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < num_tokens
    row = tl.load(token_rows_ptr + offs, mask=mask, other=-1).to(tl.int64)
    position = tl.load(positions_ptr + offs, mask=mask, other=0)
    is_real = row >= 0
    token = tl.load(tokens_ptr + row * stride_tokens + position, mask=is_real, other=0)
    slot = slot_of(block_table_ptr, row, position, is_real, num_columns, stride_table, BLOCK_SIZE)
    tl.store(token_ids_ptr + offs, token.to(tl.int64), mask=mask)
    tl.store(slot_mapping_ptr + offs, slot, mask=mask)


@triton.jit(do_not_specialize=["num_updates"], do_not_specialize_on_alignment=["rows_ptr", "columns_ptr", "values_ptr"])
def _scatter(
    target_ptr, rows_ptr, columns_ptr, values_ptr, num_updates, stride_target, LOWEST: tl.constexpr, BLOCK: tl.constexpr
):
    """target[rows, columns] = max(values, LOWEST); LOWEST None stores any value. Row -1 stores nothing."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < num_updates
    row = tl.load(rows_ptr + offs, mask=mask, other=-1).to(tl.int64)
    column = tl.load(columns_ptr + offs, mask=mask, other=0)
    value = tl.load(values_ptr + offs, mask=mask, other=0)
    if LOWEST is not None:
        value = tl.maximum(value, LOWEST)
    tl.store(target_ptr + row * stride_target + column, value.to(tl.int32), mask=row >= 0)


@triton.jit
def _store_rows(target_ptr, slots_ptr, rows_ptr, num_columns, stride_target, stride_rows, BLOCK_COLUMNS: tl.constexpr):
    """target[slots] = rows; slot -1 stores nothing."""
    pid = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    slot = tl.load(slots_ptr + pid)
    mask = offs < num_columns
    values = tl.load(rows_ptr + pid * stride_rows + offs, mask=mask)
    tl.store(target_ptr + slot * stride_target + offs, values, mask=mask & (slot >= 0))


def prepare_decode(
    tokens: Tensor,
    block_table: Tensor,
    rows: Tensor,
    positions: Tensor,
    *,
    block_size: int,
    token_ids: Tensor,
    out_positions: Tensor,
    slot_mapping: Tensor,
    context_lens: Tensor,
    batch_table: Tensor,
) -> None:
    """See `prepare_decode_reference`. Vectors are contiguous; rows of the matrices are, at any stride."""
    num_requests, num_columns = len(rows), block_table.shape[1]
    assert tokens.dtype == block_table.dtype == batch_table.dtype == torch.int32
    assert rows.dtype == positions.dtype == context_lens.dtype == torch.int32
    assert token_ids.dtype == out_positions.dtype == slot_mapping.dtype == torch.int64
    assert tokens.stride(1) == block_table.stride(1) == batch_table.stride(1) == 1
    assert batch_table.shape == (num_requests, num_columns), f"{tuple(batch_table.shape)} for {num_columns} columns"
    if num_requests == 0:
        return
    block_columns = min(COLUMNS, triton.next_power_of_2(num_columns))
    _prepare_decode[(num_requests, triton.cdiv(num_columns, block_columns))](
        tokens,
        block_table,
        rows,
        positions,
        token_ids,
        out_positions,
        slot_mapping,
        context_lens,
        batch_table,
        num_columns,
        tokens.stride(0),
        block_table.stride(0),
        batch_table.stride(0),
        BLOCK_SIZE=block_size,
        BLOCK_COLUMNS=block_columns,
        num_warps=max(1, min(4, block_columns // 128)),
    )


def gather_tokens(
    tokens: Tensor,
    block_table: Tensor,
    token_rows: Tensor,
    positions: Tensor,
    *,
    block_size: int,
    token_ids: Tensor,
    slot_mapping: Tensor,
) -> None:
    """See `gather_tokens_reference`. Positions int32 or int64; vectors contiguous, the matrices' rows too."""
    num_tokens = len(token_rows)
    assert tokens.dtype == block_table.dtype == token_rows.dtype == torch.int32
    assert token_ids.dtype == slot_mapping.dtype == torch.int64
    assert tokens.stride(1) == block_table.stride(1) == 1
    if num_tokens == 0:
        return
    _gather_tokens[(triton.cdiv(num_tokens, _ENTRIES),)](
        tokens,
        block_table,
        token_rows,
        positions,
        token_ids,
        slot_mapping,
        num_tokens,
        block_table.shape[1],
        tokens.stride(0),
        block_table.stride(0),
        BLOCK_SIZE=block_size,
        BLOCK=_ENTRIES,
        num_warps=_ENTRIES // 32,
    )


def store_tokens_(tokens: Tensor, rows: Tensor, positions: Tensor, sampled: Tensor) -> None:
    """See `store_tokens_reference_`."""
    assert sampled.dtype == torch.int64
    _launch_scatter(tokens, rows, positions, sampled, lowest=0)


def scatter_table_(block_table: Tensor, rows: Tensor, columns: Tensor, values: Tensor) -> None:
    """See `scatter_table_reference_`."""
    assert values.dtype == torch.int32
    _launch_scatter(block_table, rows, columns, values, lowest=None)


def store_rows_(target: Tensor, slots: Tensor, rows: Tensor) -> None:
    """See `store_rows_reference_`."""
    num_rows, num_columns = rows.shape
    assert slots.dtype == torch.int64 and slots.shape == (num_rows,) and target.shape[1] == num_columns
    assert target.dtype == rows.dtype and target.stride(1) == rows.stride(1) == 1
    if num_rows == 0:
        return
    block_columns = min(COLUMNS, triton.next_power_of_2(num_columns))
    _store_rows[(num_rows, triton.cdiv(num_columns, block_columns))](
        target,
        slots,
        rows,
        num_columns,
        target.stride(0),
        rows.stride(0),
        BLOCK_COLUMNS=block_columns,
        num_warps=max(1, min(4, block_columns // 128)),
    )


def _launch_scatter(target: Tensor, rows: Tensor, columns: Tensor, values: Tensor, *, lowest: int | None) -> None:
    assert target.dtype == rows.dtype == columns.dtype == torch.int32 and target.stride(1) == 1
    if len(rows) == 0:
        return
    _scatter[(triton.cdiv(len(rows), _ENTRIES),)](
        target,
        rows,
        columns,
        values,
        len(rows),
        target.stride(0),
        LOWEST=lowest,
        BLOCK=_ENTRIES,
        num_warps=_ENTRIES // 32,
    )


def specialisations() -> Iterator[Specialisation]:
    """Of a store of 256 requests: short contexts in large blocks, and 32k tokens in blocks of 16."""
    from minivllm_kernels.ahead_of_time import launches_of
    from minivllm_kernels.prepare_inputs.verification import kernel as verification

    def ints(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    wide, rows = ints(64, dtype=torch.int64), ints(64)
    for max_len, block_size in ((2048, 256), (32_768, 16)):
        columns, suffix = max_len // block_size, f"L{max_len}-B{block_size}"
        tokens, table = ints(256, max_len + 1), ints(256, columns)
        yield from launches_of(
            f"prepare_inputs-decode-{suffix}",
            prepare_decode,
            tokens,
            table,
            rows,
            rows,
            block_size=block_size,
            token_ids=wide,
            out_positions=wide,
            slot_mapping=wide,
            context_lens=rows,
            batch_table=ints(64, columns),
        )
        yield from launches_of(
            f"prepare_inputs-gather-{suffix}",
            gather_tokens,
            tokens,
            table,
            rows,
            wide,
            block_size=block_size,
            token_ids=wide,
            slot_mapping=wide,
        )
    yield from launches_of("prepare_inputs-store", store_tokens_, ints(8, 2049), rows, rows, wide)
    features, dtype = ints(4096, 2560, dtype=torch.bfloat16), torch.bfloat16
    yield from launches_of("prepare_inputs-rows", store_rows_, features, wide, ints(64, 2560, dtype=dtype))
    yield from launches_of("prepare_inputs-scatter", scatter_table_, ints(8, 8), rows, rows, rows)
    yield from verification.specialisations()
