"""How a GPU does it: every head of every token is a row of its own, rows are dealt to programs, each byte moves once.

One pass reads qkv and writes q and k back, k and v into the cache. At 8192 tokens of 32 + 8 + 8 heads of 128 in bf16
that is 101 MB in, 84 and 34 MB out: 51 us of an H200's 4.3 TB/s; at one token it is a launch and two waits for memory
(a position, then its rotation).

Programs are of three kinds, for q, k and v, told apart by their number: rows of a kind are numbered through, token by
token, so that a tile is full whatever the number of heads. A thread holds 16 bytes of a head, so that both halves of a
pair meet in its registers; a head is summed over the same threads in the same order whatever the tile, so no result
depends on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from minivllm_kernels.rotary_and_cache.reference import LARGEST

if TYPE_CHECKING:
    from minivllm_kernels.ahead_of_time import Specialisation

_NUM_WARPS = 4


@triton.jit
def _round_to_int(x):
    """The nearest integer, ties to even, of |x| < 2**22: at this size a float32 has no places behind the point."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _heads(
    pid,
    num_tokens,
    qkv_ptr,
    positions_ptr,
    rotations_ptr,
    norm_weight_ptr,
    eps,
    kv_cache_ptr,
    kv_scales_ptr,
    slot_mapping_ptr,
    stride_qkv,
    stride_block,
    stride_offset,
    stride_kv,
    stride_scale_block,
    stride_scale_offset,
    stride_scale_kv,
    # Heads [FIRST, FIRST + COUNT) of a token; K or V of the cache, if it is written.
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    IS_TURNED: tl.constexpr,
    CACHE_INDEX: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
):
    rows = pid * ROWS + tl.arange(0, ROWS)
    token = (rows // COUNT).to(tl.int64)
    head = rows % COUNT
    mask_row = token < num_tokens
    offs_d = tl.arange(0, BLOCK_D)
    mask = mask_row[:, None] & (offs_d < HEAD_DIM)[None, :]
    at = qkv_ptr + (token * stride_qkv + (FIRST + head) * HEAD_DIM)[:, None] + offs_d[None, :]
    x = tl.load(at, mask=mask, other=0.0)
    if CACHE_INDEX is not None:
        slot = tl.load(slot_mapping_ptr + token, mask=mask_row, other=-1)
    if IS_TURNED:
        position = tl.load(positions_ptr + token, mask=mask_row, other=0).to(tl.int64)
        # [ROWS, BLOCK_D] of cos and sin in turn: the shape of x, so that each meets its pair in one thread.
        turn = tl.load(rotations_ptr + (position * HEAD_DIM)[:, None] + offs_d[None, :], mask=mask, other=0.0)
        wide = x.to(tl.float32)
        if norm_weight_ptr is not None:
            weight_at = norm_weight_ptr + ((FIRST + head) * HEAD_DIM)[:, None] + offs_d[None, :]
            weight = tl.load(weight_at, mask=mask, other=0.0)
            scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / HEAD_DIM + eps)
            normed = (wide * scale[:, None]).to(x.dtype).to(tl.float32) * weight.to(tl.float32)
            wide = normed.to(x.dtype).to(tl.float32)
        first, second = tl.split(tl.reshape(wide, (ROWS, BLOCK_D // 2, 2)))
        cos, sin = tl.split(tl.reshape(turn, (ROWS, BLOCK_D // 2, 2)))
        # Which product is fused with the sum is said, not left to the compiler, so that tiles cannot differ by it.
        turned = tl.join(tl.fma(-second, sin, first * cos), tl.fma(first, sin, second * cos))
        x = tl.reshape(turned, (ROWS, BLOCK_D)).to(x.dtype)
        tl.store(at, x, mask=mask)
    if CACHE_INDEX is not None:
        mask_slot = slot >= 0
        block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
        if kv_scales_ptr is not None:
            wide = x.to(tl.float32)
            scale = tl.div_rn(tl.max(tl.abs(wide), axis=1), tl.full((ROWS,), LARGEST, tl.float32))
            scale_at = block * stride_scale_block + offset * stride_scale_offset + CACHE_INDEX * stride_scale_kv + head
            tl.store(kv_scales_ptr + scale_at, scale, mask=mask_slot)
            wide = tl.div_rn(wide, tl.broadcast_to(tl.where(scale > 0, scale, 1.0)[:, None], (ROWS, BLOCK_D)))
            x = _round_to_int(wide) if LARGEST == 127 else wide
        row_at = block * stride_block + offset * stride_offset + CACHE_INDEX * stride_kv + head * HEAD_DIM
        cached = x.to(kv_cache_ptr.dtype.element_ty)
        tl.store(kv_cache_ptr + row_at[:, None] + offs_d[None, :], cached, mask=mask & mask_slot[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def _rotary_and_cache(
    num_tokens,
    qkv_ptr,
    positions_ptr,
    rotations_ptr,
    norm_weight_ptr,
    eps,
    kv_cache_ptr,
    kv_scales_ptr,
    slot_mapping_ptr,
    stride_qkv,
    stride_block,
    stride_offset,
    stride_kv,
    stride_scale_block,
    stride_scale_offset,
    stride_scale_kv,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
):
    KEYS: tl.constexpr = None if kv_cache_ptr is None else 0
    pid = tl.program_id(0)
    num_q = tl.cdiv(num_tokens * NUM_HEADS, ROWS)
    num_k = tl.cdiv(num_tokens * NUM_KV_HEADS, ROWS)
    if pid < num_q:
        _heads(
            pid, num_tokens, qkv_ptr, positions_ptr, rotations_ptr, norm_weight_ptr, eps, None, None, None, stride_qkv,
            0, 0, 0, 0, 0, 0, 0, NUM_HEADS, True, None, HEAD_DIM, BLOCK_D, ROWS, BLOCK_SIZE, LARGEST,
        )  # fmt: skip
    elif pid < num_q + num_k:
        _heads(
            pid - num_q, num_tokens, qkv_ptr, positions_ptr, rotations_ptr, norm_weight_ptr, eps, kv_cache_ptr,
            kv_scales_ptr, slot_mapping_ptr, stride_qkv, stride_block, stride_offset, stride_kv, stride_scale_block,
            stride_scale_offset, stride_scale_kv, NUM_HEADS, NUM_KV_HEADS, True, KEYS, HEAD_DIM, BLOCK_D, ROWS,
            BLOCK_SIZE, LARGEST,
        )  # fmt: skip
    elif kv_cache_ptr is not None:
        _heads(
            pid - num_q - num_k, num_tokens, qkv_ptr, None, None, None, eps, kv_cache_ptr, kv_scales_ptr,
            slot_mapping_ptr, stride_qkv, stride_block, stride_offset, stride_kv, stride_scale_block,
            stride_scale_offset, stride_scale_kv, NUM_HEADS + NUM_KV_HEADS, NUM_KV_HEADS, False, 1, HEAD_DIM, BLOCK_D,
            ROWS, BLOCK_SIZE, LARGEST,
        )  # fmt: skip


def rotary_and_cache_(
    qkv: Tensor,
    positions: Tensor,
    rotations: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    kv_cache: Tensor | None = None,
    slot_mapping: Tensor | None = None,
    kv_scales: Tensor | None = None,
) -> None:
    """See `rotary_and_cache_reference_`.

    A row of qkv is contiguous, at any stride; so are rotations and norm_weight, and a token's heads in the cache and in
    the scales. D is even and at most 256, block_size a power of two. float8_e4m3fn wants a GPU of at least sm_89.
    """
    num_tokens, size = qkv.shape
    assert size == (num_heads + 2 * num_kv_heads) * head_dim and qkv.stride(1) == 1
    assert head_dim % 2 == 0 and head_dim <= 256
    assert rotations.dtype is torch.float32 and rotations.is_contiguous() and rotations.shape[1] == head_dim // 2
    assert norm_weight is None or (
        norm_weight.shape == (num_heads + num_kv_heads, head_dim) and norm_weight.is_contiguous()
    )
    strides, scale_strides = (0, 0, 0), (0, 0, 0)
    if kv_cache is not None:
        assert slot_mapping is not None and kv_cache.shape[2:] == (2, num_kv_heads, head_dim)
        assert kv_cache.stride()[3:] == (head_dim, 1)
        assert (kv_scales is None) == (kv_cache.dtype is qkv.dtype), f"{kv_cache.dtype} cache of {qkv.dtype}"
        strides = kv_cache.stride()[:3]
    if kv_scales is not None:
        assert kv_scales.dtype is torch.float32 and kv_scales.stride(3) == 1
        scale_strides = kv_scales.stride()[:3]
    if num_tokens == 0:
        return
    block_d, rows = _tile(num_tokens * num_heads, head_dim)
    num_kinds = 1 if kv_cache is None else 2
    num_programs = triton.cdiv(num_tokens * num_heads, rows) + num_kinds * triton.cdiv(num_tokens * num_kv_heads, rows)
    _rotary_and_cache[(num_programs,)](
        num_tokens,
        qkv,
        positions,
        rotations,
        norm_weight,
        eps,
        kv_cache,
        kv_scales,
        slot_mapping,
        qkv.stride(0),
        *strides,
        *scale_strides,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        ROWS=rows,
        BLOCK_SIZE=1 if kv_cache is None else kv_cache.shape[1],
        LARGEST=None if kv_scales is None or kv_cache is None else LARGEST[kv_cache.dtype],
        num_warps=_NUM_WARPS,
    )


def _tile(num_rows: int, head_dim: int) -> tuple[int, int]:
    """Padded head size and heads of a program: 8 elements a thread, which spreads few heads over the most SMs; twice
    that where there are enough programs anyhow, for more bytes in flight."""
    block_d = triton.next_power_of_2(head_dim)
    elements = 8 * 32 * _NUM_WARPS
    if num_rows * block_d > 2**21:
        elements *= 2
    return block_d, elements // block_d


def specialisations() -> Iterator[Specialisation]:
    """The reference model, Qwen3-0.6B, 8B models, head sizes that are no power of two; few tokens and many; 8 bits."""
    from minivllm_kernels.ahead_of_time import launches_of

    def launch(name, num_tokens, heads, kv_heads, size, dtype, *, cache=None, norm=False, block_size=16, **budget):
        def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        cache = cache or dtype
        return launches_of(
            f"rotary_and_cache-{name}",
            rotary_and_cache_,
            meta(num_tokens, (heads + 2 * kv_heads) * size),
            meta(num_tokens, dtype=torch.int64),
            meta(4096, size // 2, 2, dtype=torch.float32),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=size,
            norm_weight=meta(heads + kv_heads, size) if norm else None,
            eps=1e-6,
            kv_cache=meta(64, block_size, 2, kv_heads, size, dtype=cache),
            slot_mapping=meta(num_tokens, dtype=torch.int64),
            kv_scales=None if cache is dtype else meta(64, block_size, 2, kv_heads, dtype=torch.float32),
            **budget,
        )

    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    for dtype in (half, brain, full):
        word = str(dtype).removeprefix("torch.")
        for num_tokens in (1, 8192):
            yield from launch(f"{word}-D128-norm-N{num_tokens}", num_tokens, 32, 8, 128, dtype, norm=True)
            yield from launch(f"{word}-D32-N{num_tokens}", num_tokens, 16, 2, 32, dtype, block_size=256)
        yield from launch(f"{word}-D80-norm", 64, 28, 4, 80, dtype, norm=True)
        yield from launch(f"{word}-D256-norm", 64, 16, 8, 256, dtype, norm=True)
        yield from launch(f"{word}-D128-norm-int8", 64, 32, 8, 128, dtype, norm=True, cache=torch.int8)
    for num_tokens in (1, 8192):
        name = f"bfloat16-D128-norm-fp8-N{num_tokens}"
        # Ampere has no instruction for this type, and Triton no detour.
        yield from launch(
            name, num_tokens, 32, 8, 128, brain, norm=True, cache=torch.float8_e4m3fn, architectures=(90,)
        )
