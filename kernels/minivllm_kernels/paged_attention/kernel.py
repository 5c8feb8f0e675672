"""Decode attention on a GPU: one query a request over its paged K/V cache, split over the SMs, in one launch.

The floor is the time to read each key and value once: 2 x context x K x D elements a request, at 4.3 TB/s on an H200.
For 32 requests of 2048 keys (fp16, K 8, D 128) that is 268 MB or 62 us; the arithmetic, 16 padded query rows on tensor
cores, is a quarter of what an SM can issue meanwhile.

- A program is a stretch of one request's keys for one key/value head, and all query heads that share it are the M rows
  of its products, padded to the 16 of a tensor core instruction: K and V are read once. (Fewer rows save nothing: with
  16-bit numbers the code is no shorter, and a product by FMA at G = 1 would load its operands no faster.)
- Tiles of keys travel by 16-byte asynchronous copies, two ahead of the computation. K is copied as it lies and only
  *addressed* as its transpose. The block table's entry for a tile is loaded one iteration before it is needed and
  carried in registers: loaded where it is needed, Triton's pipeliner takes it for one more level of indirection and
  spends its stages on it, which leaves a single tile in flight.
- All tiles are masked alike. A mask costs a few percent of the issue slots that a bandwidth-bound kernel has to spare;
  a last tile of its own would start its loads when the loop has drained, one memory latency later.
- Softmax runs in base 2, and row sums stay spread over the keys' columns until the end: one reduction across warps a
  tile, that of the maximum.
- Heads vary fastest over the grid, splits slowest: programs that run together read neighbouring memory, and splits that
  find no keys, spare ones for long contexts, come when all others have been started.
- The last program of a pair to arrive merges its splits, in their order, so that results can be repeated. A second
  launch would cost 1.3 us inside a graph and as much again to start its loads, in every layer, even for batches
  where no context was long enough to be split; here those write their output directly. Nobody waits for anybody.

Lengths stay on the device: grid and addresses depend on shapes alone, and a captured graph serves any lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minivllm_kernels.ahead_of_time import Specialisation, launches_of
from minivllm_kernels.paged_attention.decode_config import DecodeConfig
from minivllm_kernels.paged_attention.decode_launch import (
    call_of_shapes,
    choose_decode_config,
    decode_arguments,
)

# Probabilities times scales of V are kept this many times larger: in float16 they would lose digits below 6e-5. Scales
# may be as large as 1023.
V_UNIT = tl.constexpr(64.0)
# Arguments that change as a batch goes on: nothing is recompiled for their sake.
_COUNTERS = ["stride_table_row", "even_splits"]


def paged_decode(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    kv_scales: Tensor | None = None,
    out: Tensor | None = None,
    counters: Tensor | None = None,
    config: DecodeConfig | None = None,
) -> Tensor:
    """Attention of each request's newest token, whose key and value are in the cache already, over all of its keys.

    Args:
        q: [R, H, D] float16, bfloat16 or float32, D at most 256; any stride from row to row, heads contiguous.
        kv_cache: [num_blocks, block_size, 2, K, D], block_size a power of two, H / K at most 16; index 0 of dimension
            2 is K. The dtype of `q`, or with `kv_scales` int8 or float8_e4m3fn, D even.
        block_table: [R, width] int32: token t of request r is in slot `t % block_size` of block
            `block_table[r, t // block_size]`. Entries beyond the context, or before the window, are not followed.
        context_lens: [R] int32; 0 is a padding row, whose output is 0.
        scale: multiplies the scores.
        sliding_window: keys that a query sees, its own included; None is all.
        kv_scales: [num_blocks, block_size, 2, K] float32, last dimension contiguous: a number in the cache times its
            scale is its value.
        out: [R, H, D] contiguous, to be filled.
        counters: [R * K] int32 or more, zeros; left at zero. One for all launches of a stream; None makes one, which
            costs a launch.
        config: None chooses by the sizes at hand; a fixed one makes rows independent of the batch.

    Returns:
        `out`, in the dtype of `q`.

    Source: "Flash-Decoding for long-context inference" (2023) for the split; online softmax: arXiv 1805.02867.
    """
    num_rows = q.shape[0]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    if num_rows == 0:
        return out
    num_kv_heads = kv_cache.shape[3]
    if config is None:
        config = choose_decode_config(q, kv_cache, block_table, sliding_window)
    partial_acc = partial_stats = None
    if config.num_splits == 1:
        counters = None
    else:
        # Of each row, head of K/V, split and query head of the group: its sum, and its maximum and denominator.
        splits = (num_rows, num_kv_heads, config.num_splits)
        group_size = q.shape[1] // num_kv_heads
        partial_acc = torch.empty((*splits, group_size, q.shape[2]), dtype=torch.float32, device=q.device)
        partial_stats = torch.empty((*splits, 2, group_size), dtype=torch.float32, device=q.device)
        if counters is None:
            counters = torch.zeros(num_rows * num_kv_heads, dtype=torch.int32, device=q.device)
    arguments = decode_arguments(
        q, kv_cache, block_table, context_lens, scale, sliding_window, kv_scales, out, partial_acc, partial_stats,
        counters, config,
    )  # fmt: skip
    grid = (num_kv_heads, num_rows, config.num_splits)
    # The interpreter knows no PTX.
    arguments["PTX"] = not triton.knobs.runtime.interpret
    _paged_decode_kernel[grid](**arguments, num_warps=config.num_warps, num_stages=config.num_stages)
    return out


@triton.jit
def _merge_splits(
    partial_acc_ptr, partial_stats_ptr, out_ptr, num_active,
    GROUP_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MERGE_S: tl.constexpr,
    MERGE_G: tl.constexpr,
):  # fmt: skip
    """Write the output of one pair from its splits; all pointers are at the pair's first element.

    MERGE_S splits are asked for at once, so that a merge takes few memory latencies; more would cost the key loop
    registers.
    """
    offs_s, offs_g, offs_d = tl.arange(0, MERGE_S), tl.arange(0, MERGE_G), tl.arange(0, BLOCK_D)
    m_i = tl.full([MERGE_G], float("-inf"), tl.float32)
    l_i = tl.zeros([MERGE_G], tl.float32)
    acc = tl.zeros([MERGE_G, BLOCK_D], tl.float32)
    for first in range(0, num_active, MERGE_S):
        splits = first + offs_s
        mask_sg = (splits[:, None] < num_active) & (offs_g[None, :] < GROUP_SIZE)
        stats = partial_stats_ptr + splits[:, None] * (2 * GROUP_SIZE) + offs_g[None, :]
        rows = (splits[:, None] * GROUP_SIZE + offs_g[None, :]) * HEAD_DIM
        # Other programs wrote these: not from L1.
        m_s = tl.load(stats, mask=mask_sg, other=float("-inf"), cache_modifier=".cg")
        l_s = tl.load(stats + GROUP_SIZE, mask=mask_sg, other=0.0, cache_modifier=".cg")
        acc_s = tl.load(
            partial_acc_ptr + rows[:, :, None] + offs_d[None, None, :],
            mask=mask_sg[:, :, None] & (offs_d[None, None, :] < HEAD_DIM),
            other=0.0,
            cache_modifier=".cg",
        )
        m_new = tl.maximum(m_i, tl.max(m_s, 0))
        # Padding rows of the group have no maximum: keep them from -inf - -inf.
        m_new = tl.where(offs_g < GROUP_SIZE, m_new, 0.0)
        alpha = tl.exp2(m_i - m_new)
        weights = tl.exp2(m_s - m_new[None, :])
        l_i = l_i * alpha + tl.sum(weights * l_s, 0)
        acc = acc * alpha[:, None] + tl.sum(weights[:, :, None] * acc_s, 0)
        m_i = m_new
    mask_gd = (offs_g[:, None] < GROUP_SIZE) & (offs_d[None, :] < HEAD_DIM)
    acc = acc / tl.where(offs_g < GROUP_SIZE, l_i, 1.0)[:, None]
    tl.store(out_ptr + offs_g[:, None] * HEAD_DIM + offs_d[None, :], acc, mask=mask_gd)


# Two int16 in a register give two pairs of float16: 1.25 (int8) and 1.75 (fp8) instructions a number, where the same
# words in Triton, half a register at a time, take 2.5 and 3.5, more than an SM has time for at full bandwidth.
UNPACK_INT8_PTX = tl.constexpr("""{
    .reg .b32 high, bias;
    mov.b32 bias, 0x64806480;
    shr.u32 high, $2, 8;
    lop3.b32 $0, $2, 0x00ff00ff, bias, 0x6a;
    lop3.b32 $1, high, 0x00ff00ff, bias, 0x6a;
    sub.f16x2 $0, $0, bias;
    sub.f16x2 $1, $1, bias;
}""")
UNPACK_FLOAT8_PTX = tl.constexpr("""{
    .reg .b32 digits, sign, low;
    shl.b32 digits, $2, 7;
    shl.b32 sign, $2, 8;
    and.b32 digits, digits, 0x3f803f80;
    lop3.b32 low, sign, 0x80008000, digits, 0xea;
    shr.u32 digits, $2, 1;
    and.b32 digits, digits, 0x3f803f80;
    lop3.b32 $1, $2, 0x80008000, digits, 0xea;
    mov.b32 $0, low;
}""")


@triton.jit
def _unpack(pairs, FLOAT8: tl.constexpr, PTX: tl.constexpr):
    """The low and the high bytes of int16 numbers, each an int8 or a float8_e4m3fn over 256, exactly, in float16.

    In bits: an e4m3 is a float16 with fewer digits and another bias. An integer u in [0, 256) over the last digits of
    1024 is 1024 + u, and a signed byte with its first bit turned is u = 128 + the byte. PTX says the same by the word.
    """
    if FLOAT8:
        if PTX:
            return tl.inline_asm_elementwise(
                UNPACK_FLOAT8_PTX, "=r,=r,r", [pairs], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
            )
        low = ((pairs & 0x80) << 8) | ((pairs & 0x7F) << 7)
        high = (pairs & -0x8000) | ((pairs & 0x7F00) >> 1)
        return low.to(tl.float16, bitcast=True), high.to(tl.float16, bitcast=True)
    else:
        if PTX:
            return tl.inline_asm_elementwise(
                UNPACK_INT8_PTX, "=r,=r,r", [pairs], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
            )
        low = (pairs & 0xFF) ^ 0x6480
        high = ((pairs >> 8) & 0xFF) ^ 0x6480
        return low.to(tl.float16, bitcast=True) - 1152.0, high.to(tl.float16, bitcast=True) - 1152.0


@triton.jit(do_not_specialize=_COUNTERS)
def _paged_decode_kernel(
    q_ptr, kv_ptr, kv_scales_ptr, block_table_ptr, context_lens_ptr, out_ptr,
    # float32 [R, K, splits, GROUP_SIZE, D], [R, K, splits, 2, GROUP_SIZE] and int32 [R * K]; None for a single split.
    partial_acc_ptr, partial_stats_ptr, counters_ptr,
    qk_scale,
    stride_q_row, stride_kv_block, stride_kv_slot, stride_kv_half, stride_kv_head,
    stride_scales_block, stride_scales_slot, stride_scales_half, stride_table_row,
    even_splits,
    GROUP_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, SLIDING_WINDOW: tl.constexpr,
    MIN_TILES: tl.constexpr, MAX_TILES: tl.constexpr, KV_FLOAT8: tl.constexpr, PTX: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    MERGE_S: tl.constexpr, MERGE_G: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    num_splits = tl.num_programs(2)
    pair = row * tl.num_programs(0) + kv_head
    # Asked for together with the queries, so that two latencies are spent as one.
    context_len = tl.load(context_lens_ptr + row)

    offs_g, offs_n, offs_d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    mask_gd = (offs_g[:, None] < GROUP_SIZE) & (offs_d[None, :] < HEAD_DIM)
    # Of a head of the group, within q of one row, out of one row, or one split of partial_acc.
    offs_gd = offs_g[:, None] * HEAD_DIM + offs_d[None, :]
    q_ptr += row * stride_q_row + kv_head * (GROUP_SIZE * HEAD_DIM)
    q = tl.load(q_ptr + offs_gd, mask=mask_gd, other=0.0)  # [BLOCK_G, BLOCK_D]

    # Keys [first_key, context_len) in tiles that are aligned in absolute positions, so that no tile of a block's size
    # or less reaches into a second block.
    first_key = 0
    if SLIDING_WINDOW is not None:
        first_key = tl.maximum(context_len - SLIDING_WINDOW, 0)
    first_tile = first_key // BLOCK_N
    num_tiles = tl.cdiv(context_len, BLOCK_N) - first_tile
    split_tiles = tl.minimum(tl.maximum(tl.cdiv(num_tiles, even_splits), MIN_TILES), MAX_TILES)
    split_tiles = tl.maximum(split_tiles, tl.cdiv(num_tiles, num_splits))
    split_tiles = tl.where(num_tiles <= 2 * MIN_TILES, 2 * MIN_TILES, split_tiles)
    # A padding row has no keys; its first split writes the zeros.
    num_active = tl.maximum(tl.cdiv(num_tiles, split_tiles), 1)
    if split >= num_active:
        return
    first = (first_tile + split * split_tiles) * BLOCK_N
    end = tl.minimum(first + split_tiles * BLOCK_N, context_len)

    # An 8-bit cache is read as pairs of neighbours; even and odd dimensions then have products of their own.
    PAIRED: tl.constexpr = kv_scales_ptr is not None
    WIDTH: tl.constexpr = HEAD_DIM // 2 if PAIRED else HEAD_DIM
    BLOCK_W: tl.constexpr = BLOCK_D // 2 if PAIRED else BLOCK_D
    offs_w = tl.arange(0, BLOCK_W)
    mask_w = offs_w < WIDTH
    qk_scales = tl.full([BLOCK_G], 0.0, tl.float32) + qk_scale
    if PAIRED:
        if KV_FLOAT8:
            qk_scales *= 256.0
        if q.dtype == tl.bfloat16:
            # Into the range of float16, the type of the products.
            q_max = tl.maximum(tl.max(tl.abs(q.to(tl.float32)), 1), 1e-30)
            q = (q.to(tl.float32) / q_max[:, None]).to(tl.float16)
            qk_scales *= q_max
        q, q_odd = tl.split(tl.reshape(q, [BLOCK_G, BLOCK_W, 2]))

    kv_ptr += kv_head * stride_kv_head
    block_table_ptr += row * stride_table_row
    # One entry where a tile lies in one block, else one a key.
    if BLOCK_SIZE >= BLOCK_N:
        block_id = tl.load(block_table_ptr + first // BLOCK_SIZE, mask=first < end, other=0)
    else:
        block_id = tl.load(
            block_table_ptr + (first // BLOCK_SIZE + offs_n // BLOCK_SIZE), mask=first + offs_n < end, other=0
        )
    m_i = tl.full([BLOCK_G], float("-inf"), tl.float32)
    l_columns = tl.zeros([BLOCK_G, BLOCK_N], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_W], tl.float32)
    if PAIRED:
        acc_odd = tl.zeros([BLOCK_G, BLOCK_W], tl.float32)
    for start in range(first, end, BLOCK_N):
        mask_n = start + offs_n < end
        if SLIDING_WINDOW is not None:
            mask_n &= start + offs_n >= first_key
        following = start + BLOCK_N
        block = block_id.to(tl.int64)
        if BLOCK_SIZE >= BLOCK_N:
            offs_slot = start % BLOCK_SIZE + offs_n
            block_id = tl.load(block_table_ptr + following // BLOCK_SIZE, mask=following < end, other=0)
        else:
            offs_slot = offs_n % BLOCK_SIZE
            block_id = tl.load(
                block_table_ptr + (following // BLOCK_SIZE + offs_n // BLOCK_SIZE),
                mask=following + offs_n < end,
                other=0,
            )
        tile_ptr = kv_ptr + block * stride_kv_block
        offs_key = offs_slot * stride_kv_slot
        # Slots that nobody wrote may hold NaN: zeros in their place.
        if BLOCK_SIZE >= BLOCK_N:
            k_ptrs = tile_ptr + offs_key[None, :] + offs_w[:, None]
            v_ptrs = tile_ptr + stride_kv_half + offs_key[:, None] + offs_w[None, :]
        else:
            k_ptrs = (tile_ptr + offs_key)[None, :] + offs_w[:, None]
            v_ptrs = (tile_ptr + offs_key)[:, None] + (stride_kv_half + offs_w)[None, :]
        k = tl.load(k_ptrs, mask=mask_n[None, :] & mask_w[:, None], other=0)  # [BLOCK_W, BLOCK_N]
        v = tl.load(v_ptrs, mask=mask_n[:, None] & mask_w[None, :], other=0)  # [BLOCK_N, BLOCK_W]

        if PAIRED:
            k_even, k_odd = _unpack(k, KV_FLOAT8, PTX)
            scores = tl.dot(q, k_even.to(q.dtype), input_precision="ieee")
            scores = tl.dot(q_odd, k_odd.to(q.dtype), scores, input_precision="ieee") * qk_scales[:, None]
            scale_ptrs = kv_scales_ptr + kv_head + block * stride_scales_block + offs_slot * stride_scales_slot
            scores *= tl.load(scale_ptrs, mask=mask_n, other=0.0)[None, :]
        else:
            scores = tl.dot(q, k, input_precision="ieee") * qk_scale
        scores = tl.where(mask_n[None, :], scores, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(scores, 1))
        alpha = tl.exp2(m_i - m_new)
        p = tl.exp2(scores - m_new[:, None])
        l_columns = l_columns * alpha[:, None] + p
        if PAIRED:
            v_scale = tl.load(scale_ptrs + stride_scales_half, mask=mask_n, other=0.0)
            v_even, v_odd = _unpack(v, KV_FLOAT8, PTX)
            p = (p * (v_scale * V_UNIT)[None, :]).to(q.dtype)
            acc = tl.dot(p, v_even.to(q.dtype), acc * alpha[:, None], input_precision="ieee")
            acc_odd = tl.dot(p, v_odd.to(q.dtype), acc_odd * alpha[:, None], input_precision="ieee")
        else:
            acc = tl.dot(p.to(q.dtype), v, acc * alpha[:, None], input_precision="ieee")
        m_i = m_new
    l_i = tl.sum(l_columns, 1)
    if PAIRED:
        acc = tl.reshape(tl.join(acc, acc_odd), [BLOCK_G, BLOCK_D]) * ((256.0 if KV_FLOAT8 else 1.0) / V_UNIT)

    out_ptr += pair * (GROUP_SIZE * HEAD_DIM)
    if num_active == 1:
        # No keys, no weights: 0.
        tl.store(out_ptr + offs_gd, acc / tl.where(l_i > 0, l_i, 1.0)[:, None], mask=mask_gd)
    elif counters_ptr is not None:
        partial_acc_ptr += pair * num_splits * (GROUP_SIZE * HEAD_DIM)
        partial_stats_ptr += pair * num_splits * (2 * GROUP_SIZE)
        stats_ptrs = partial_stats_ptr + split * (2 * GROUP_SIZE) + offs_g
        tl.store(partial_acc_ptr + split * (GROUP_SIZE * HEAD_DIM) + offs_gd, acc, mask=mask_gd)
        tl.store(stats_ptrs, m_i, mask=offs_g < GROUP_SIZE)
        tl.store(stats_ptrs + GROUP_SIZE, l_i, mask=offs_g < GROUP_SIZE)
        # All threads have written before one of them says so; the last to arrive has acquired what the others released.
        tl.debug_barrier()
        if tl.atomic_add(counters_ptr + pair, 1, sem="acq_rel") == num_active - 1:
            tl.store(counters_ptr + pair, 0)
            _merge_splits(
                partial_acc_ptr, partial_stats_ptr, out_ptr, num_active, GROUP_SIZE, HEAD_DIM, BLOCK_D, MERGE_S, MERGE_G
            )  # fmt: skip


def specialisations() -> Iterator[Specialisation]:
    """What is launched for Qwen3-0.6B (G 2), Qwen3-8B (G 4), Llama and others, by dtype and what is special."""
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    base = dict(dtype=half, kv_dtype=half, num_rows=8, num_kv_heads=8, group_size=2, head_dim=128, block_size=256)
    base["max_keys"] = 4096

    def spec(name: str, **changes: Any) -> Specialisation:
        call = call_of_shapes(**{**base, **changes})
        # Rather than give up a third program an SM, ptxas may keep one number on the stack until the keys are done.
        spills = 0 if call["kv_scales"] is None else 8
        (one,) = launches_of(f"paged_decode-{name}", paged_decode, **call, max_spill_bytes=spills)
        return one

    for name, dtype in (("fp16", half), ("bf16", brain), ("fp32", full)):
        for block_size in (16, 256):
            yield spec(f"{name}-D128-G2-B{block_size}", dtype=dtype, kv_dtype=dtype, block_size=block_size)
        for bits, kv_dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
            yield spec(f"{name}-{bits}-D128-G4-B16", dtype=dtype, kv_dtype=kv_dtype, group_size=4, block_size=16)
    for bits, kv_dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
        yield spec(f"bf16-{bits}-D64-G8-B256", dtype=brain, kv_dtype=kv_dtype, group_size=8, head_dim=64)
    for group_size in (1, 4, 7, 16):
        yield spec(f"bf16-D128-G{group_size}-B16", dtype=brain, kv_dtype=brain, group_size=group_size, block_size=16)
    for head_dim, block_size in ((32, 16), (64, 256), (80, 16), (112, 256), (256, 16), (256, 256)):
        yield spec(f"fp16-D{head_dim}-G4-B{block_size}", head_dim=head_dim, group_size=4, block_size=block_size)
    yield spec("fp32-D256-G16-B16", dtype=full, kv_dtype=full, head_dim=256, group_size=16, block_size=16)
    yield spec("fp32-D32-G4-B16", dtype=full, kv_dtype=full, head_dim=32, group_size=4, block_size=16)
    # One pair a program from the start: nothing to merge.
    yield spec("fp16-D128-G2-B256-unsplit", num_rows=64, max_keys=1024)
    yield spec("fp16-D128-G2-B1", block_size=1)
    yield spec("bf16-D128-G4-B16-W4096", dtype=brain, kv_dtype=brain, group_size=4, block_size=16, sliding_window=4096)
