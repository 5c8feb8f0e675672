"""What the device-resident store of rows answers.

A request owns a row of the store: its tokens, prompt then output, in `tokens [max_rows, max_len + 1]` int32 and the
blocks of its K/V in `block_table [max_rows, max_blocks]` int32, padded with -1. A step names rows and positions; row -1
is padding, and what else stands in its place is not looked at. All outputs are written in place.
"""

from __future__ import annotations

from torch import Tensor


def prepare_decode_reference(
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
    """Inputs of a step in which each request brings one token, which is in the store.

    Args:
        tokens: [max_rows, max_len + 1] int32.
        block_table: [max_rows, max_blocks] int32.
        rows: [B] int32, the request's row, -1 for padding.
        positions: [B] int32, the token's place in its request.
        block_size: tokens of a block, a power of two.
        token_ids: [B] int64, set to the token; 0 for padding.
        out_positions: [B] int64, set to the position; 0 for padding.
        slot_mapping: [B] int64, set to where its K/V go, block * block_size + offset; -1 for padding, and where the
            table has no block for the position, as with a row that a finished request still has in flight.
        context_lens: [B] int32, set to the keys that the token sees, position + 1; 0 for padding.
        batch_table: [B, max_blocks] int32, its first ceil(context / block_size) columns set to the row's table. The
            rest keeps what it has: nothing reads beyond the context.
    """
    gather_tokens_reference(
        tokens, block_table, rows, positions, block_size=block_size, token_ids=token_ids, slot_mapping=slot_mapping
    )
    for b, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        if row < 0:
            out_positions[b], context_lens[b] = 0, 0
            continue
        out_positions[b], context_lens[b] = position, position + 1
        num_blocks = -(-(position + 1) // block_size)
        batch_table[b, :num_blocks] = block_table[row, :num_blocks]


def gather_tokens_reference(
    tokens: Tensor,
    block_table: Tensor,
    token_rows: Tensor,
    positions: Tensor,
    *,
    block_size: int,
    token_ids: Tensor,
    slot_mapping: Tensor,
) -> None:
    """Inputs of packed tokens, any number of a request.

    Args:
        tokens, block_table, block_size: as above.
        token_rows: [N] int32, the row of each token's request, -1 for padding.
        positions: [N] integers, its place in its request.
        token_ids: [N] int64, set to the tokens; 0 for padding.
        slot_mapping: [N] int64, set as above.
    """
    for i, (row, position) in enumerate(zip(token_rows.tolist(), positions.tolist(), strict=True)):
        token_ids[i] = tokens[row, position] if row >= 0 else 0
        column = position // block_size
        block = block_table[row, column].item() if row >= 0 and column < block_table.shape[1] else -1
        slot_mapping[i] = block * block_size + position % block_size if block >= 0 else -1


def store_tokens_reference_(tokens: Tensor, rows: Tensor, positions: Tensor, sampled: Tensor) -> None:
    """Put each request's new token into the store.

    Args:
        tokens: [max_rows, max_len + 1] int32, written.
        rows: [B] int32, -1 for padding, which stores nothing; no row and position twice.
        positions: [B] int32, the place of the new token.
        sampled: [B] int64; below 0 where sampling failed, which stores 0, so that what embeds it stays in bounds.
    """
    for row, position, token in zip(rows.tolist(), positions.tolist(), sampled.tolist(), strict=True):
        if row >= 0:
            tokens[row, position] = max(token, 0)


def scatter_table_reference_(block_table: Tensor, rows: Tensor, columns: Tensor, values: Tensor) -> None:
    """Set single entries of the table.

    Args:
        block_table: [max_rows, max_blocks] int32, written.
        rows: [U] int32, -1 for padding, which sets nothing; no row and column twice.
        columns, values: [U] int32.
    """
    for row, column, value in zip(rows.tolist(), columns.tolist(), values.tolist(), strict=True):
        if row >= 0:
            block_table[row, column] = value


def store_rows_reference_(target: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Keep what belongs to each token in its slot.

    Args:
        target: [num_slots, C], written.
        slots: [N] int64; -1 stores nothing; none twice.
        rows: [N, C] of the same dtype.
    """
    for slot, row in zip(slots.tolist(), rows, strict=True):
        if slot >= 0:
            target[slot] = row
