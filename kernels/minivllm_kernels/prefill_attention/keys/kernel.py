"""How a program of prefill attention walks over its keys, tile by tile, in either of two schedules."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from minivllm_kernels.ahead_of_time import Specialisation


@triton.jit
def find_blocks(table_ptr, first_key, lo, hi, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Block of each key of a tile, one for all where a block holds the tile. Entries outside of [lo, hi) are not read:
    those keys get the block of the nearest key inside."""
    keys = first_key
    if BLOCK_SIZE < BLOCK_N:
        keys += tl.arange(0, BLOCK_N)
    keys = tl.minimum(tl.maximum(keys, lo), hi - 1)
    return tl.load(table_ptr + keys // BLOCK_SIZE).to(tl.int64)


@triton.jit
def load_tile(
    ptr, blocks, first_key, lo, hi, stride_block, stride_slot,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """K or V of the keys [first_key, first_key + BLOCK_N), zero outside of [lo, hi): [BLOCK_N, BLOCK_D]."""
    keys = first_key + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    rows = blocks * stride_block + (keys & (BLOCK_SIZE - 1)) * stride_slot
    mask = ((keys >= lo) & (keys < hi))[:, None]
    if BLOCK_D != D:
        mask = mask & (offs_d < D)[None, :]
    return tl.load(ptr + (rows[:, None] + offs_d[None, :]), mask=mask, other=0.0)


@triton.jit
def load_scales(
    ptr, blocks, first_key, lo, hi, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr
):  # fmt: skip
    """What the tile's keys, or values, are to be multiplied by: [BLOCK_N]."""
    keys = first_key + tl.arange(0, BLOCK_N)
    rows = (blocks * BLOCK_SIZE + (keys & (BLOCK_SIZE - 1))) * (2 * K)
    return tl.load(ptr + rows, mask=(keys >= lo) & (keys < hi), other=0.0)


@triton.jit
def to_float(tile, dtype: tl.constexpr, FP8: tl.constexpr):
    """A tile as the multiplication wants it. fp8 (e4m3) comes as bytes, and gives 2^-8 of its value if "by bits"."""
    if FP8 == "native":
        # To bfloat16 by way of float32 is exact and fast; the direct conversion has a quarter of the speed.
        tile = tile.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(tl.float32)
    elif FP8 == "by bits":
        bits = tile.to(tl.uint16)
        tile = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
    elif tile.dtype == tl.int8 and dtype == tl.float16:
        # The float16 of 1152 + x has the bits 0x6480 + x: an addition, where a conversion has a quarter of the speed.
        tile = (tile.to(tl.int16) + 0x6480).to(tl.float16, bitcast=True) - 1152.0
    return tile.to(dtype)


@triton.jit
def _tree_bits(tree_ptrs, first_draft, num_drafts, mask_m):
    """Each row's mask of the 64 drafts from `first_draft` on, which may be negative: two words, shifted together."""
    word = first_draft >> 6
    shift = (first_draft & 63).to(tl.int64)
    low = tl.load(tree_ptrs + word, mask=mask_m & (word >= 0) & (word * 64 < num_drafts), other=0)
    high = tl.load(tree_ptrs + word + 1, mask=mask_m & (word >= -1) & ((word + 1) * 64 < num_drafts), other=0)
    # A shift by 64 is none, hence by 63 - shift and then by 1. The bits that `high` gives are the sign's in `low`.
    from_high = (tl.full([], -1, tl.int64) << (63 - shift)) << 1
    return ((low >> shift) & ~from_high) | ((high << (63 - shift)) << 1)


@triton.jit
def mask_scores(
    qk, first_key, pos, hi, window, first_new, tree_ptrs, places_ptr, mask_m,
    BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_TREE: tl.constexpr,
):  # fmt: skip
    """Scores, and -inf where a row does not see a key. `places_ptr`: positions of the keys from `first_new` on."""
    offs_n = tl.arange(0, BLOCK_N)[None, :]
    keys = first_key + offs_n
    if HAS_TREE:
        drafts = first_key - first_new
        bits = _tree_bits(tree_ptrs, drafts, hi - first_new, mask_m)
        if BLOCK_N > 64:
            tl.static_assert(BLOCK_N == 128)
            more = _tree_bits(tree_ptrs, drafts + 64, hi - first_new, mask_m)
            bits = tl.where(offs_n < 64, bits[:, None], more[:, None])
        else:
            bits = bits[:, None]
        seen = (keys < first_new) | ((((bits >> (offs_n & 63)) & 1) != 0) & (keys < hi))
        if HAS_WINDOW:
            is_draft = (keys >= first_new) & (keys < hi)
            places = tl.load(places_ptr + (keys - first_new), mask=is_draft, other=0).to(tl.int32)
            seen = seen & (tl.where(is_draft, places, keys) > pos[:, None] - window)
    else:
        seen = keys <= pos[:, None]
        if HAS_WINDOW:
            seen = seen & (keys > pos[:, None] - window)
    return tl.where(seen, qk, float("-inf"))


@triton.jit
def softmax_step(qk, m_i, l_i, GUARD: tl.constexpr):
    """Online softmax, base 2 (FlashAttention-2, arXiv 2307.08691, section 3.1): weights of this tile against the new
    maximum, and the factor of what was summed before. GUARD: a row may have seen no key yet."""
    m_new = tl.maximum(m_i, tl.max(qk, 1))
    m_ref = m_new
    if GUARD:
        m_ref = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.math.exp2(qk - m_ref[:, None])
    alpha = tl.math.exp2(m_i - m_ref)
    return p, alpha, m_new, tl.fma(l_i, alpha, tl.sum(p, 1))


@triton.jit
def attend(
    acc, m_i, l_i, q, k_ptr, v_ptr, scales_ptr, table_ptr, first, end, lo, hi, pos, mask_m, window, first_new,
    tree_ptrs, places_ptr, qk_scale, stride_block, stride_slot, K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr, MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_TREE: tl.constexpr, HAS_SCALES: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Keys [first, end), a tile at a time. The table is read a tile ahead, so that no copy waits for its address."""
    blocks = find_blocks(table_ptr, first, lo, hi, BLOCK_N, BLOCK_SIZE)
    for key in range(first, end, BLOCK_N):
        k = load_tile(k_ptr, blocks, key, lo, hi, stride_block, stride_slot, D, BLOCK_D, BLOCK_N, BLOCK_SIZE)
        v = load_tile(v_ptr, blocks, key, lo, hi, stride_block, stride_slot, D, BLOCK_D, BLOCK_N, BLOCK_SIZE)
        if HAS_SCALES:
            k_scale = load_scales(scales_ptr, blocks, key, lo, hi, K, BLOCK_N, BLOCK_SIZE)
            v_scale = load_scales(scales_ptr + K, blocks, key, lo, hi, K, BLOCK_N, BLOCK_SIZE)
            if FP8 == "by bits":
                k_scale *= 256.0
                v_scale *= 256.0
        blocks = find_blocks(table_ptr, key + BLOCK_N, lo, hi, BLOCK_N, BLOCK_SIZE)
        qk = tl.dot(q, tl.trans(to_float(k, q.dtype, FP8)), input_precision="ieee")
        if HAS_SCALES:
            qk = tl.fma(qk, (k_scale * qk_scale)[None, :], 0.0)
        else:
            qk = tl.fma(qk, qk_scale, 0.0)
        if MASKED:
            qk = mask_scores(
                qk, key, pos, hi, window, first_new, tree_ptrs, places_ptr, mask_m, BLOCK_N, HAS_WINDOW, HAS_TREE
            )
        p, alpha, m_i, l_i = softmax_step(qk, m_i, l_i, HAS_WINDOW or HAS_TREE)
        if HAS_SCALES:
            p = p * v_scale[None, :]
        acc = acc * alpha[:, None]
        acc = tl.dot(p.to(q.dtype), to_float(v, q.dtype, FP8), acc, input_precision="ieee")
    return acc, m_i, l_i


@triton.jit
def attend_overlapped(
    acc, m_i, l_i, p, qk, q, k_ptr, v_ptr, table_ptr, first, end, lo, hi, pos, mask_m, window, first_new, tree_ptrs,
    places_ptr, qk_scale, stride_block, stride_slot, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_TREE: tl.constexpr,
):  # fmt: skip
    """The same with the two products of a tile in different rounds: a round adds the V of the tile before, starts the
    scores of the tile after, and takes its own tile's softmax while those are in flight.

    `p` enters as the weights of the tile before `first`, `qk` as the scores of the tile at `first`.
    """
    blocks_v = find_blocks(table_ptr, first - BLOCK_N, lo, hi, BLOCK_N, BLOCK_SIZE)
    blocks_k = find_blocks(table_ptr, first + BLOCK_N, lo, hi, BLOCK_N, BLOCK_SIZE)
    for key in range(first, end, BLOCK_N):
        before, after = key - BLOCK_N, key + BLOCK_N
        v = load_tile(v_ptr, blocks_v, before, lo, hi, stride_block, stride_slot, D, BLOCK_D, BLOCK_N, BLOCK_SIZE)
        k = load_tile(k_ptr, blocks_k, after, lo, hi, stride_block, stride_slot, D, BLOCK_D, BLOCK_N, BLOCK_SIZE)
        blocks_v = find_blocks(table_ptr, key, lo, hi, BLOCK_N, BLOCK_SIZE)
        blocks_k = find_blocks(table_ptr, after + BLOCK_N, lo, hi, BLOCK_N, BLOCK_SIZE)
        acc = tl.dot(p.to(q.dtype), v, acc)
        # Done with before the next product starts: else that one's registers are copied while in flight, and the
        # assembler waits after each instruction.
        qk = tl.fma(qk, qk_scale, 0.0)
        qk_after = tl.dot(q, tl.trans(k))
        if MASKED:
            qk = mask_scores(
                qk, key, pos, hi, window, first_new, tree_ptrs, places_ptr, mask_m, BLOCK_N, HAS_WINDOW, HAS_TREE
            )
        p, alpha, m_i, l_i = softmax_step(qk, m_i, l_i, HAS_WINDOW or HAS_TREE)
        acc = acc * alpha[:, None]
        qk = qk_after
    return acc, m_i, l_i, p, qk


def specialisations() -> Iterator[Specialisation]:
    """None: programs of prefill attention call these, nothing launches them."""
    return iter(())
