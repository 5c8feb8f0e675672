"""Inputs of a step in which each request brings its newest token and up to so many drafts, all of which lie in its row.

Every request gets the same number of queries, so that one CUDA graph serves all steps of a size: who has fewer drafts
has queries of nobody behind them. See `kernel` for how it is done and what it costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from minivllm_kernels.prepare_inputs.kernel import COLUMNS, slot_of

if TYPE_CHECKING:
    from minivllm_kernels.ahead_of_time import Specialisation


@triton.jit(
    do_not_specialize=["num_queries"],
    do_not_specialize_on_alignment=["rows_ptr", "positions_ptr", "num_drafts_ptr"],
)
def _prepare_verification(
    tokens_ptr,
    block_table_ptr,
    rows_ptr,
    positions_ptr,
    num_drafts_ptr,
    token_ids_ptr,
    out_positions_ptr,
    slot_mapping_ptr,
    query_rows_ptr,
    targets_ptr,
    context_lens_ptr,
    batch_table_ptr,
    num_queries,
    num_columns,
    num_batch_columns,
    stride_tokens,
    stride_table,
    stride_batch_table,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
):
    pid_b = tl.program_id(0).to(tl.int64)
    pid_column = tl.program_id(1)
    row = tl.load(rows_ptr + pid_b).to(tl.int64)
    position = tl.load(positions_ptr + pid_b)
    num_drafts = tl.load(num_drafts_ptr + pid_b)
    is_real = row >= 0
    first = tl.where(is_real, position, 0)
    context = first + num_queries
    offs = pid_column * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = offs < tl.minimum(tl.cdiv(context, BLOCK_SIZE), num_batch_columns)
    blocks = tl.load(block_table_ptr + row * stride_table + offs, mask=mask & is_real & (offs < num_columns), other=-1)
    # Keys of nobody's queries are read and not looked at: any block will do.
    tl.store(batch_table_ptr + pid_b * stride_batch_table + offs, tl.maximum(blocks, 0), mask=mask)
    if pid_column == 0:
        tl.store(context_lens_ptr + pid_b, context)
        queries = tl.arange(0, BLOCK_QUERIES)
        mask_q = queries < num_queries
        is_query = is_real & (queries <= num_drafts) & mask_q
        places = first + queries
        token = tl.load(tokens_ptr + row * stride_tokens + places, mask=is_query, other=0)
        slot = slot_of(block_table_ptr, row, places, is_query, num_columns, stride_table, BLOCK_SIZE)
        at = pid_b * num_queries + queries
        tl.store(token_ids_ptr + at, token.to(tl.int64), mask=mask_q)
        tl.store(slot_mapping_ptr + at, slot, mask=mask_q)
        tl.store(out_positions_ptr + at, tl.where(is_query, places, 0).to(tl.int64), mask=mask_q)
        tl.store(query_rows_ptr + at, tl.where(is_query, row, -1).to(tl.int32), mask=mask_q)
        tl.store(targets_ptr + at, tl.where(is_query, places + 1, 0), mask=mask_q)


def prepare_verification(
    tokens: Tensor,
    block_table: Tensor,
    rows: Tensor,
    positions: Tensor,
    num_drafts: Tensor,
    *,
    block_size: int,
    token_ids: Tensor,
    out_positions: Tensor,
    slot_mapping: Tensor,
    query_rows: Tensor,
    targets: Tensor,
    context_lens: Tensor,
    batch_table: Tensor,
) -> None:
    """See `prepare_verification_reference`. Vectors are contiguous; rows of the matrices are, at any stride."""
    num_requests = len(rows)
    num_queries = len(token_ids) // max(1, num_requests)
    num_batch_columns = batch_table.shape[1]
    assert tokens.dtype == block_table.dtype == batch_table.dtype == torch.int32
    assert rows.dtype == positions.dtype == num_drafts.dtype == context_lens.dtype == torch.int32
    assert query_rows.dtype == targets.dtype == torch.int32
    assert token_ids.dtype == out_positions.dtype == slot_mapping.dtype == torch.int64
    assert tokens.stride(1) == block_table.stride(1) == batch_table.stride(1) == 1
    assert len(batch_table) == num_requests and len(query_rows) == len(targets) == num_requests * num_queries
    if num_requests == 0:
        return
    block_columns = min(COLUMNS, triton.next_power_of_2(num_batch_columns))
    _prepare_verification[(num_requests, triton.cdiv(num_batch_columns, block_columns))](
        tokens,
        block_table,
        rows,
        positions,
        num_drafts,
        token_ids,
        out_positions,
        slot_mapping,
        query_rows,
        targets,
        context_lens,
        batch_table,
        num_queries,
        block_table.shape[1],
        num_batch_columns,
        tokens.stride(0),
        block_table.stride(0),
        batch_table.stride(0),
        BLOCK_SIZE=block_size,
        BLOCK_COLUMNS=block_columns,
        BLOCK_QUERIES=max(16, triton.next_power_of_2(num_queries)),
        num_warps=max(1, min(4, block_columns // 128)),
    )


def specialisations() -> Iterator[Specialisation]:
    """Short contexts in large blocks, and 32k tokens in blocks of 16; 8 drafts."""
    from minivllm_kernels.ahead_of_time import launches_of

    def ints(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows, queries, wide = ints(64), ints(576), ints(576, dtype=torch.int64)
    for max_len, block_size in ((2048, 256), (32_768, 16)):
        columns = max_len // block_size
        yield from launches_of(
            f"prepare_inputs-verification-L{max_len}-B{block_size}",
            prepare_verification,
            ints(256, max_len + 1),
            ints(256, columns),
            rows,
            rows,
            rows,
            block_size=block_size,
            token_ids=wide,
            out_positions=wide,
            slot_mapping=wide,
            query_rows=queries,
            targets=queries,
            context_lens=rows,
            batch_table=ints(64, columns + 1),
        )
