"""How a CPU does it in float32: K and V read where they lie, one (token, K/V head) at a time, no gather and no mask.

The threads first write the step's own K and V to their slots, wait for each other, then share the (token, K/V head)
pairs. For a pair, the scores of the heads' group are taken block by block into a buffer of the context's length, then
softmax, then the weighted sum of V, block by block. Prefill, decode and any mixture of them are the same loop, and a
token's output depends on its own keys alone, in their order: it is bitwise the same for any batch, chunk or block size.
So it is in a tree of drafts: keys that a draft does not see take no place in the buffer, and its output is bitwise that
of its path alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from minivllm_kernels.cpu_ir import LANES
from minivllm_kernels.cpu_threads import address, barrier, cpu_kernel, float_bits, num_threads, thread_num
from minivllm_kernels.cpu_vectors import (
    add_weighted_rows,
    dot_rows,
    exp_scores,
    f32_at,
    f64_of_bits,
    i32_at,
    i64_at,
)

_ZERO, _MINUS_INFINITY = np.float32(0.0), np.float32(-np.inf)


def paged_attention(
    qkv: Tensor,
    kv_cache: Tensor,
    *,
    positions: Tensor,
    slot_mapping: Tensor,
    token_rows: Tensor,
    block_table: Tensor,
    max_context_len: int,
    num_heads: int,
    scale: float,
    sliding_window: int | None = None,
    trees: Tensor | None = None,
) -> Tensor:
    """Write K and V of every token, then attend causally over each token's own request, or along its path in a tree.

    Args:
        qkv: [N, (H + 2 K) * D] float32 contiguous, on the CPU: q, k, v of each token, q and k rotated.
        kv_cache: [num_blocks, block_size, 2, K, D] float32 contiguous, block_size a power of two; index 0 of
            dimension 2 is K.
        positions: [N] int64, place of each token in its request.
        slot_mapping: [N] int64, where its K/V goes: block_id * block_size + offset.
        token_rows: [N] int64, the row of `block_table` that is its request's.
        block_table: [R, max_blocks] int32 contiguous.
        max_context_len: above every position.
        num_heads: H.
        scale: multiplies the scores.
        sliding_window: keys that a query sees, itself included; None is all.
        trees: what each token sees where some are in trees, [N, 2] int64 contiguous: (end, bits) are keys [0, end) and
            end + j for each bit j, one for each of the positions up to its own.

    Returns:
        [N, H * D].
    """
    num_tokens = qkv.shape[0]
    _, block_size, _, num_kv_heads, head_dim = kv_cache.shape
    out = qkv.new_empty(num_tokens, num_heads * head_dim)
    # For each thread and head: scores, in whole vectors, and their sum.
    row_size = -(-max_context_len // LANES) * LANES
    scores = torch.empty(num_threads(), num_heads, row_size + 1)
    _paged_attention(
        address(qkv), address(kv_cache), positions.data_ptr(), slot_mapping.data_ptr(), token_rows.data_ptr(),
        block_table.data_ptr(), address(out), address(scores), num_tokens, block_size.bit_length() - 1, num_heads,
        num_kv_heads, head_dim, block_table.shape[1], row_size, sliding_window or row_size, float_bits(scale),
        0 if trees is None else trees.data_ptr(),
    )  # fmt: skip
    return out


@njit(inline="always", error_model="numpy")
def _next_run(first: Any, end: Any, bits: Any, block_size: Any) -> Any:
    """The run of seen keys from `first` on, or from the next that is seen: its first key and its length, in one block.
    Keys before `end` are seen, then end + j for each bit j."""
    if first < end:
        return first, min(block_size - (first & (block_size - 1)), end - first)
    while not (bits >> (first - end)) & 1:
        first += 1
    return first, 1


@njit(error_model="numpy")
def _attend(
    query: Any, cache: Any, blocks: Any, out: Any, rows: Any, first_head: Any, end_head: Any, start: Any, end: Any,
    bits: Any, num_keys: Any, block_bits: Any, num_kv_heads: Any, group: Any, size: Any, row_size: Any, scale: Any,
) -> None:  # fmt: skip
    """One token, K/V heads [first_head, end_head), keys [start, end) and end + j for each bit j: `num_keys`."""
    kv_size = num_kv_heads * size
    slot_size = 2 * kv_size
    block_size = 1 << block_bits
    heads = range(first_head * group, end_head * group)
    # Scores are kept in whole vectors; behind all rows of them lie their sums.
    padded = (num_keys + LANES - 1) // LANES * LANES
    sums = f32_at(rows + 4 * num_kv_heads * group * row_size)
    for head in heads:
        scores, target = f32_at(rows + 4 * head * row_size), f32_at(out + 4 * head * size)
        for i in range(num_keys):
            scores[i] = _ZERO
        for i in range(num_keys, padded):
            scores[i] = _MINUS_INFINITY
        for i in range(size):
            target[i] = _ZERO

    # Blocks outside, heads inside: the cache is read in the order in which it lies.
    first, done = start, 0
    while done < num_keys:
        first, count = _next_run(first, end, bits, block_size)
        slot = cache + 4 * (blocks[first >> block_bits] * block_size + (first & (block_size - 1))) * slot_size
        for head in heads:
            scores, q = f32_at(rows + 4 * (head * row_size + done)), f32_at(query + 4 * head * size)
            dot_rows(scores, q, f32_at(slot + 4 * (head // group) * size), slot_size, count, size)
        first += count
        done += count
    for head in heads:
        sums[head] = exp_scores(f32_at(rows + 4 * head * row_size), padded, scale)
    first, done = start, 0
    while done < num_keys:
        first, count = _next_run(first, end, bits, block_size)
        slot = blocks[first >> block_bits] * block_size + (first & (block_size - 1))
        values = cache + 4 * (slot * slot_size + kv_size)
        for head in heads:
            weights, target = f32_at(rows + 4 * (head * row_size + done)), f32_at(out + 4 * head * size)
            add_weighted_rows(target, weights, f32_at(values + 4 * (head // group) * size), slot_size, count, size)
        first += count
        done += count
    for head in heads:
        target = f32_at(out + 4 * head * size)
        for i in range(size):
            target[i] /= sums[head]


@cpu_kernel(18)
def _paged_attention(a: Any) -> None:
    qkv, cache, out = a[0], a[1], a[6]
    positions, slots, token_rows = i64_at(a[2]), i64_at(a[3]), i64_at(a[4])
    num_tokens, block_bits, num_heads, num_kv_heads, size = a[8], a[9], a[10], a[11], a[12]
    table_width, row_size, window = a[13], a[14], a[15]
    scale, trees, num_threads = np.float32(f64_of_bits(a[16])), i64_at(a[17]), a[18]
    group = num_heads // num_kv_heads
    # Floats of a token: in qkv, of its k (or v), and from one slot of a block to the next.
    width, kv_size = (num_heads + 2 * num_kv_heads) * size, num_kv_heads * size
    slot_size = 2 * kv_size
    thread = thread_num()

    for token in range(num_tokens * thread // num_threads, num_tokens * (thread + 1) // num_threads):
        source = f32_at(qkv + 4 * (token * width + num_heads * size))
        target = f32_at(cache + 4 * slots[token] * slot_size)
        for i in range(slot_size):
            target[i] = source[i]
    if num_threads > 1:
        barrier()

    # The (token, K/V head) pairs in order, cut where the keys read so far reach each thread's share: a thread streams
    # through whole slots of the cache, and ragged contexts are shared evenly.
    total_keys = 0
    for token in range(num_tokens):
        total_keys += min(positions[token] + 1, window) * num_kv_heads
    share_first, share_end = total_keys * thread // num_threads, total_keys * (thread + 1) // num_threads
    keys_before = 0
    for token in range(num_tokens):
        end, bits = positions[token] + 1, 0
        start = max(end - window, 0)
        num_keys = end - start
        if a[17] != 0:
            end, bits = trees[2 * token], trees[2 * token + 1]
            # The root and the drafts after it that the window has left behind.
            for _ in range(end, start):
                bits &= bits - 1
            start = min(start, end)
        # A pair belongs to the share in which its first key lies.
        first_head = min(max((share_first - keys_before + num_keys - 1) // num_keys, 0), num_kv_heads)
        end_head = min(max((share_end - keys_before + num_keys - 1) // num_keys, 0), num_kv_heads)
        keys_before += num_keys * num_kv_heads
        if first_head < end_head:
            _attend(
                qkv + 4 * token * width, cache, i32_at(a[5] + 4 * token_rows[token] * table_width),
                out + 4 * token * num_heads * size, a[7] + 4 * thread * num_heads * (row_size + 1), first_head,
                end_head, start, end, bits, num_keys, block_bits, num_kv_heads, group, size, row_size, scale,
            )  # fmt: skip
