"""What the inputs of a verification are."""

from __future__ import annotations

from torch import Tensor


def prepare_verification_reference(
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
    """Inputs of a step of B requests with Q queries each: the newest token, its drafts, and what fills the rest.

    Args:
        tokens: [max_rows, max_len + 1] int32, the store; drafts stand behind the newest token.
        block_table: [max_rows, max_blocks] int32, -1 where there is none.
        rows: [B] int32, -1 for padding, all of whose queries are nobody's.
        positions: [B] int32, of the newest token.
        num_drafts: [B] int32, at most Q - 1.
        block_size: tokens of a block, a power of two.
        token_ids, out_positions, slot_mapping: [B * Q] int64, set to each query's token, position and slot; to 0, 0 and
            -1 where it is nobody's.
        query_rows, targets: [B * Q] int32, set to the row and the place of the token that follows; to -1 and 0 there.
        context_lens: [B] int32, set to the keys that a request's last query sees, were it somebody's: position + Q.
        batch_table: [B, columns] int32, those that a context reaches into set to the row's table, 0 where that has no
            block. The rest keeps what it has.
    """
    num_queries = len(token_ids) // max(1, len(rows))
    given = zip(rows.tolist(), positions.tolist(), num_drafts.tolist(), strict=True)
    for b, (row, position, count) in enumerate(given):
        first = position if row >= 0 else 0
        context_lens[b] = first + num_queries
        for column in range(min(batch_table.shape[1], -(-(first + num_queries) // block_size))):
            has = row >= 0 and column < block_table.shape[1]
            batch_table[b, column] = max(0, int(block_table[row, column])) if has else 0
        for query in range(num_queries):
            at, place = b * num_queries + query, first + query
            token_ids[at], out_positions[at], slot_mapping[at], query_rows[at], targets[at] = 0, 0, -1, -1, 0
            if row >= 0 and query <= count:
                block = int(block_table[row, place // block_size])
                token_ids[at], out_positions[at] = tokens[row, place], place
                query_rows[at], targets[at] = row, place + 1
                slot_mapping[at] = block * block_size + place % block_size if block >= 0 else -1
