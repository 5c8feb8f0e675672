"""Prefill attention on a GPU: a program takes a tile of rows of one request and K/V head, a row being a (token, head of
the group), and walks the keys that they see from the first to the diagonal.

The floor is arithmetic: 4 * D * H FLOPs for each pair of a query and a key that it sees. 16,384 tokens with 32 heads of
128 are 2.2 TFLOPs, 2.8 ms at an H200's 790 TFLOP/s; 2,048 tokens 0.044 ms. Reading K and V once takes 1 % of that.

What the form follows from:

- Packed groups. K/V tiles are read once for G heads, and the diagonal spans BLOCK_M / G tokens in place of BLOCK_M.
- The grid is the most tiles that N tokens of R requests can be cut into; nothing on the host reads lengths. A program
  finds its request by counting those that begin before it: one load, where a bisection has log R, each for the next.
  A (tile, request) grid would launch max_query_len / tile * R programs, tens of thousands of them to leave at once
  where one prompt of 2,048 joins 255 decoding requests. A request with few queries and a long context is one program
  a K/V head: split-KV decoding is another kernel's.
- `overlap` (16-bit K/V, Hopper): `wgmma` runs on while the warps compute, if nothing touches its accumulator. Triton
  waits at the first product of a round, so a round begins with the last tile's p @ v, then starts the next tile's
  q @ k and takes its own tile's softmax underneath. It costs half a tile of idle products at either end.
- K and V come by `cp.async`, 16 bytes a thread, in `num_stages` buffers; bulk copies would need descriptors, made anew
  in each program since the layers' caches differ, to save instructions that hide under the products already.

A row's sum runs over tiles of BLOCK_N keys from key 0 (with a window, from a tile's border before it); tiles of which
it sees nothing change no bit of it. So its result depends on BLOCK_N and on its own request alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minivllm_kernels.ahead_of_time import Specialisation
from minivllm_kernels.prefill_attention.config import PrefillConfig, choose_config
from minivllm_kernels.prefill_attention.keys.kernel import attend, attend_overlapped, find_blocks, load_tile

# Requests that one step of a program's search looks at.
SEARCH_WIDTH = tl.constexpr(256)


@triton.jit(do_not_specialize=["window", "num_requests", "num_tiles", "stride_table", "stride_tree"])
def _prefill_attention(
    q_ptr, cache_ptr, scales_ptr, tree_ptr, positions_ptr, table_ptr, cu_seqlens_ptr, context_lens_ptr, out_ptr,
    qk_scale, window, num_requests, num_tiles, stride_q, stride_out, stride_table, stride_tree, stride_block,
    stride_slot, stride_kv, stride_head, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_TREE: tl.constexpr, HAS_SCALES: tl.constexpr, FP8: tl.constexpr, ONE_TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = BLOCK_M // G
    # K/V heads of a tile side by side; last tiles first, as they have the most keys.
    head = (tl.program_id(0) % K).to(tl.int64)
    tile = num_tiles - 1 - tl.program_id(0) // K

    # Request r's tiles begin at cu_seqlens_q[r] // TOKENS + r, which leaves each request enough of them.
    request = tile
    if not ONE_TILE:
        num_begun = 0
        for first in range(0, num_requests, SEARCH_WIDTH):
            requests = first + tl.arange(0, SEARCH_WIDTH)
            inside = requests < num_requests
            begins = tl.load(cu_seqlens_ptr + requests, mask=inside, other=0) // TOKENS + requests
            num_begun += tl.sum((inside & (begins <= tile)).to(tl.int32))
        request = num_begun - 1
    first_query = tl.load(cu_seqlens_ptr + request)
    num_queries = tl.load(cu_seqlens_ptr + request + 1) - first_query
    first_token = 0
    if not ONE_TILE:
        first_token = (tile - (first_query // TOKENS + request)) * TOKENS
    context_len = tl.load(context_lens_ptr + request)
    # A query without a context, not even its own key, pads the batch.
    if (first_token >= num_queries) | (context_len == 0):
        return

    # Row m is token m // G of the tile and head m % G of the group.
    offs_m = tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    tokens = first_token + offs_m // G
    mask_m = (offs_m < TOKENS * G) & (tokens < num_queries)
    mask_q = mask_m[:, None] & (offs_d < D)[None, :]
    rows = (first_query + tokens).to(tl.int64)
    columns = (head * G + offs_m % G) * D
    q = tl.load(q_ptr + ((rows * stride_q + columns)[:, None] + offs_d[None, :]), mask=mask_q, other=0.0)

    # Keys [lo, hi) are seen by some row, keys [full, full_end) by all, and `start` begins lo's tile. A draft of a tree
    # is at its place among the queries, or nearer to the root.
    first_new = context_len - num_queries
    first_pos = first_new + first_token
    pos = first_new + tokens
    end_pos = tl.minimum(first_pos + TOKENS, context_len)
    hi = end_pos
    full_end = (first_pos + 1) // BLOCK_N * BLOCK_N
    lo = 0
    start = 0
    full = 0
    tree_ptrs = tree_ptr
    places_ptr = positions_ptr
    if HAS_TREE:
        hi = context_len
        full_end = first_new // BLOCK_N * BLOCK_N
        tree_ptrs = tree_ptr + rows * stride_tree
        if HAS_WINDOW:
            first_pos = first_new
            pos = tl.load(positions_ptr + rows, mask=mask_m, other=0).to(tl.int32)
            places_ptr = positions_ptr + first_query
    if HAS_WINDOW:
        lo = tl.maximum(first_pos - window + 1, 0)
        start = lo // BLOCK_N * BLOCK_N
        full = tl.minimum((tl.maximum(end_pos - window, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N, hi)
        full_end = tl.maximum(full, full_end)

    table_ptr += request.to(tl.int64) * stride_table
    k_ptr = cache_ptr + head * stride_head
    v_ptr = k_ptr + stride_kv
    if HAS_SCALES:
        scales_ptr += head
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    if OVERLAP:
        blocks = find_blocks(table_ptr, start, lo, hi, BLOCK_N, BLOCK_SIZE)
        k = load_tile(k_ptr, blocks, start, lo, hi, stride_block, stride_slot, D, BLOCK_D, BLOCK_N, BLOCK_SIZE)
        qk = tl.dot(q, tl.trans(k))
        p = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # Masks where the window begins, none in between, masks on the diagonal.
    for phase in tl.static_range(1 - HAS_WINDOW, 3):
        if phase == 0:
            first, end = start, full
        elif phase == 1:
            first, end = full, full_end
        else:
            first, end = full_end, hi
        if OVERLAP:
            acc, m_i, l_i, p, qk = attend_overlapped(
                acc, m_i, l_i, p, qk, q, k_ptr, v_ptr, table_ptr, first, end, lo, hi, pos, mask_m, window, first_new,
                tree_ptrs, places_ptr, qk_scale, stride_block, stride_slot, D, BLOCK_D, BLOCK_N, BLOCK_SIZE, phase != 1,
                HAS_WINDOW, HAS_TREE,
            )  # fmt: skip
        else:
            acc, m_i, l_i = attend(
                acc, m_i, l_i, q, k_ptr, v_ptr, scales_ptr, table_ptr, first, end, lo, hi, pos, mask_m, window,
                first_new, tree_ptrs, places_ptr, qk_scale, stride_block, stride_slot, K, D, BLOCK_D, BLOCK_N,
                BLOCK_SIZE, phase != 1, HAS_WINDOW, HAS_TREE, HAS_SCALES, FP8,
            )  # fmt: skip
    if OVERLAP:
        last = (hi - 1) // BLOCK_N * BLOCK_N
        blocks = find_blocks(table_ptr, last, lo, hi, BLOCK_N, BLOCK_SIZE)
        v = load_tile(v_ptr, blocks, last, lo, hi, stride_block, stride_slot, D, BLOCK_D, BLOCK_N, BLOCK_SIZE)
        acc = tl.dot(p.to(q.dtype), v, acc)
    if HAS_WINDOW or HAS_TREE:
        # A draft that sees nothing gives 0, and so do rows that are nobody's.
        l_i = tl.where(l_i == 0.0, 1.0, l_i)
    acc = acc * (1.0 / l_i)[:, None]
    out_ptrs = out_ptr + ((rows * stride_out + columns)[:, None] + offs_d[None, :])
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask_q)


def prefill_attention(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    context_lens: Tensor,
    *,
    max_query_len: int,
    scale: float,
    sliding_window: int | None = None,
    kv_scales: Tensor | None = None,
    tree_mask: Tensor | None = None,
    positions: Tensor | None = None,
    out: Tensor | None = None,
    config: PrefillConfig | None = None,
) -> Tensor:
    """Attention of each request's newest tokens over all of its keys, cached and new: see the reference.

    Args:
        q: [N, H, D] float32, float16 or bfloat16, any stride between tokens.
        kv_cache: [num_blocks, block_size, 2, K, D] of q's dtype, or int8 or float8_e4m3fn with `kv_scales`; block_size
            a power of two; this step's K and V are in it.
        block_table: [R, width] int32. Entries beyond a context, or before its window, are not read.
        cu_seqlens_q: [R + 1] int32.
        context_lens: [R] int32; 0 is a padding row, whose output is not written.
        max_query_len: at least the queries of any request; the host's own count.
        scale: multiplies the scores.
        sliding_window: keys that a query sees, itself included; None is all.
        kv_scales: [num_blocks, block_size, 2, K] float32 contiguous.
        tree_mask: [N, W] int64 from `pack_tree_mask`; W * 64 is at least max_query_len.
        positions: [N] int64 of the queries, where trees meet a sliding window: a query's is at most what it would be
            in a chain, and at least that of its request's first.
        out: [N, H, D] to write to, any stride between tokens.
        config: fixes the tiles; None is what `choose_config` says.

    Returns:
        [N, H, D] in q's dtype. Rows of queries that belong to nobody are not written.
    """
    num_tokens, num_heads, head_dim = q.shape
    _, block_size, _, num_kv_heads, _ = kv_cache.shape
    group_size = num_heads // num_kv_heads
    num_requests = context_lens.shape[0]
    if out is None:
        out = torch.empty(num_tokens, num_heads, head_dim, dtype=q.dtype, device=q.device)
    assert q.stride()[1:] == out.stride()[1:] == (head_dim, 1)
    assert kv_cache.stride(4) == block_table.stride(1) == 1
    assert num_heads == group_size * num_kv_heads and block_size & (block_size - 1) == 0
    assert block_table.shape[0] == num_requests == cu_seqlens_q.shape[0] - 1
    assert (kv_scales is None) == (kv_cache.dtype == q.dtype) and (kv_scales is None or kv_scales.is_contiguous())
    assert tree_mask is None or (tree_mask.shape[1] * 64 >= max_query_len and tree_mask.stride(1) == 1)
    assert tree_mask is None or sliding_window is None or (positions is not None and positions.stride(0) == 1)
    assert scale > 0 and (sliding_window is None or sliding_window >= 1)
    if num_tokens == 0 or num_requests == 0:
        return out

    capability = _capability(q.device)
    if config is None:
        config = choose_config(
            head_dim=head_dim,
            group_size=group_size,
            num_kv_heads=num_kv_heads,
            num_tokens=num_tokens,
            max_query_len=max_query_len,
            dtype_bytes=q.element_size(),
            quantized=kv_scales is not None,
            hopper=capability[0] == 9,
        )
    tokens_per_tile = config.block_m // group_size
    assert tokens_per_tile >= 1, f"a group of {group_size} heads in tiles of {config.block_m} rows"
    one_tile = max_query_len <= tokens_per_tile
    # Chips from compute capability 8.9 on have an instruction that makes floats of fp8.
    fp8 = None
    if kv_cache.dtype == torch.float8_e4m3fn:
        fp8 = "native" if capability >= (8, 9) else "by bits"
    num_tiles = num_requests if one_tile else num_tokens // tokens_per_tile + num_requests
    _prefill_attention[(num_tiles * num_kv_heads,)](
        q, kv_cache.view(torch.uint8) if fp8 else kv_cache, kv_scales, tree_mask,
        None if tree_mask is None or sliding_window is None else positions, block_table, cu_seqlens_q, context_lens,
        out, scale * math.log2(math.e), sliding_window or 0, num_requests, num_tiles, q.stride(0), out.stride(0),
        block_table.stride(0), 0 if tree_mask is None else tree_mask.stride(0), *kv_cache.stride()[:4],
        **_constants(
            num_kv_heads=num_kv_heads,
            group_size=group_size,
            head_dim=head_dim,
            block_size=block_size,
            has_window=sliding_window is not None,
            has_tree=tree_mask is not None,
            has_scales=kv_scales is not None,
            fp8=fp8,
            one_tile=one_tile,
            config=config,
        ),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    return out


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; of the interpreter none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _constants(
    *,
    num_kv_heads: int,
    group_size: int,
    head_dim: int,
    block_size: int,
    config: PrefillConfig,
    has_window: bool = False,
    has_tree: bool = False,
    has_scales: bool = False,
    fp8: str | None = None,
    one_tile: bool = False,
) -> dict[str, Any]:
    return {
        "K": num_kv_heads,
        "G": group_size,
        "D": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_SIZE": block_size,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "HAS_WINDOW": has_window,
        "HAS_TREE": has_tree,
        "HAS_SCALES": has_scales,
        "FP8": fp8,
        "ONE_TILE": one_tile,
        "OVERLAP": config.overlap,
    }


def specialisations() -> Iterator[Specialisation]:
    """What the engine launches: long prompts and verifications of four tokens, as an H200 and an A100 get them."""
    for hopper in (True, False):
        for dtype in ("bf16", "fp16"):
            for head_dim in (64, 128, 256):
                yield _specialisation(dtype, head_dim=head_dim, hopper=hopper)
        for length in (2048, 4):
            yield _specialisation("bf16", head_dim=128, hopper=hopper, length=length, has_tree=True)
            yield _specialisation("bf16", head_dim=96, group_size=7, block_size=16, hopper=hopper, length=length)
            yield _specialisation("bf16", head_dim=128, group_size=1, block_size=16, hopper=hopper, length=length)
            yield _specialisation("bf16", head_dim=128, hopper=hopper, length=length, kv="i8")
            # By bits, as on chips before 8.9: the instruction of later ones does not compile for them.
            yield _specialisation("fp16", head_dim=128, hopper=hopper, length=length, kv="u8", fp8="by bits")
        yield _specialisation("bf16", head_dim=128, hopper=hopper, has_window=True)
        yield _specialisation("bf16", head_dim=128, hopper=hopper, length=4, has_window=True, has_tree=True)
        yield _specialisation("bf16", head_dim=128, hopper=hopper, length=100)
        yield _specialisation("fp32", head_dim=128, hopper=hopper)


def _specialisation(
    dtype: str,
    *,
    head_dim: int,
    hopper: bool,
    group_size: int = 4,
    block_size: int = 256,
    length: int = 2048,
    kv: str | None = None,
    has_window: bool = False,
    has_tree: bool = False,
    fp8: str | None = None,
) -> Specialisation:
    config = choose_config(
        head_dim=head_dim,
        group_size=group_size,
        num_kv_heads=8,
        num_tokens=length,
        max_query_len=length,
        dtype_bytes=4 if dtype == "fp32" else 2,
        quantized=kv is not None,
        hopper=hopper,
    )
    constants = _constants(
        num_kv_heads=8,
        group_size=group_size,
        head_dim=head_dim,
        block_size=block_size,
        config=config,
        has_window=has_window,
        has_tree=has_tree,
        has_scales=kv is not None,
        fp8=fp8,
        one_tile=length <= config.block_m // group_size,
    )
    types = {"q_ptr": f"*{dtype}", "cache_ptr": f"*{kv or dtype}", "out_ptr": f"*{dtype}", "qk_scale": "fp32"}
    types |= {"scales_ptr": "*fp32"} if kv else {}
    types |= {"tree_ptr": "*i64"} if has_tree else {}
    types |= {"positions_ptr": "*i64"} if has_tree and has_window else {}
    types |= dict.fromkeys(["table_ptr", "cu_seqlens_ptr", "context_lens_ptr"], "*i32")
    strides = ["stride_q", "stride_out", "stride_block", "stride_slot", "stride_kv", "stride_head"]
    types |= dict.fromkeys(["window", "num_requests", "num_tiles", "stride_table", "stride_tree", *strides], "i32")
    absent = {name: None for name in ("scales_ptr", "tree_ptr", "positions_ptr") if name not in types}
    traits = [f"KV-{fp8 and 'fp8' or kv}" * bool(kv), "window" * has_window, "tree" * has_tree, "A100" * (not hopper)]
    parts = [dtype, f"D{head_dim}", f"G{group_size}", f"B{block_size}", f"N{length}", *filter(None, traits)]
    return Specialisation(
        name="-".join(["prefill_attention", *parts]),
        kernel=_prefill_attention,
        types=types,
        constants=constants | absent,
        aligned=(*(name for name, kind in types.items() if kind.startswith("*")), *strides),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        # Two registers of an A100's smallest tiles; no more, and nothing at all on a Hopper.
        max_spill_bytes=0 if hopper else 16,
        wgmma=config.block_m >= 64 and dtype != "fp32",
        architectures=(90,) if hopper else (80,),
    )
