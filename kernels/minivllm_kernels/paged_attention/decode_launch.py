"""From the tensors of a decode step to the arguments of its kernel, for a launch and for compiling ahead of one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from minivllm_kernels.paged_attention.decode_config import (
    DecodeConfig,
    decode_config,
    num_sms_of,
)

# Partial results in registers while they are merged: 32 floats a thread, all asked for at once.
_MERGE_ELEMENTS = 4096
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_SCALED = (torch.int8, torch.float8_e4m3fn)


def choose_decode_config(q: Tensor, kv_cache: Tensor, block_table: Tensor, sliding_window: int | None) -> DecodeConfig:
    """What `paged_decode` chooses for these tensors."""
    max_keys = block_table.shape[1] * kv_cache.shape[1]
    return decode_config(
        num_pairs=q.shape[0] * kv_cache.shape[3],
        max_keys=max_keys if sliding_window is None else min(max_keys, sliding_window),
        head_dim=_next_power_of_2(q.shape[2]),
        itemsize=itemsize_of(q, kv_cache),
        num_sms=num_sms_of(q.device),
    )


def itemsize_of(q: Tensor, kv_cache: Tensor) -> int:
    """Bytes that a number of a tile takes, in shared memory or, where products are made in float32, in registers."""
    return 4 if q.dtype is torch.float32 else kv_cache.dtype.itemsize


def decode_arguments(
    q: Tensor, kv_cache: Tensor, block_table: Tensor, context_lens: Tensor, scale: float, sliding_window: int | None,
    kv_scales: Tensor | None, out: Tensor, partial_acc: Tensor | None, partial_stats: Tensor | None,
    counters: Tensor | None, config: DecodeConfig,
) -> dict[str, Any]:  # fmt: skip
    """Every argument of the kernel but PTX, by name: what a launch passes and what is compiled ahead of time."""
    num_rows, num_heads, head_dim = q.shape
    _, block_size, halves, num_kv_heads, kv_head_dim = kv_cache.shape
    group_size = num_heads // num_kv_heads
    assert halves == 2 and kv_head_dim == head_dim <= 256 and block_size & (block_size - 1) == 0
    assert num_heads == group_size * num_kv_heads and 1 <= group_size <= 16
    assert q.dtype in _FLOATS and kv_cache.dtype in ((q.dtype,) if kv_scales is None else _SCALED), kv_cache.dtype
    assert q.stride()[1:] == (head_dim, 1) and kv_cache.stride(4) == 1
    assert block_table.dtype == context_lens.dtype == torch.int32 and block_table.stride(1) == 1
    assert len(block_table) >= num_rows and len(context_lens) >= num_rows and context_lens.is_contiguous()
    assert out.shape == q.shape and out.is_contiguous() and out.dtype == q.dtype
    assert sliding_window is None or sliding_window >= 1
    assert counters is None or counters.numel() >= num_rows * num_kv_heads
    strides, scale_strides = kv_cache.stride(), (0, 0, 0)
    if kv_scales is not None:
        assert kv_scales.shape == kv_cache.shape[:4] and kv_scales.dtype == torch.float32 and kv_scales.stride(3) == 1
        scale_strides = kv_scales.stride()[:3]
        strides = kv_cache.view(torch.int16).stride()
    block_d, block_h = _next_power_of_2(head_dim), _next_power_of_2(group_size)
    return {
        "q_ptr": q,
        "kv_ptr": kv_cache if kv_scales is None else kv_cache.view(torch.int16),
        "kv_scales_ptr": kv_scales,
        "block_table_ptr": block_table,
        "context_lens_ptr": context_lens,
        "out_ptr": out,
        "partial_acc_ptr": partial_acc,
        "partial_stats_ptr": partial_stats,
        "counters_ptr": counters,
        # Scores in powers of 2.
        "qk_scale": scale * math.log2(math.e),
        "stride_q_row": q.stride(0),
        "stride_kv_block": strides[0],
        "stride_kv_slot": strides[1],
        "stride_kv_half": strides[2],
        "stride_kv_head": strides[3],
        "stride_scales_block": scale_strides[0],
        "stride_scales_slot": scale_strides[1],
        "stride_scales_half": scale_strides[2],
        "stride_table_row": block_table.stride(0),
        "even_splits": config.even_splits,
        "GROUP_SIZE": group_size,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "KV_FLOAT8": kv_cache.dtype is torch.float8_e4m3fn,
        "SLIDING_WINDOW": sliding_window,
        "MIN_TILES": -(-config.min_split_size // config.block_n),
        "MAX_TILES": -(-config.max_split_size // config.block_n),
        # Tensor cores take 16 rows. Without them, in float32, every row costs.
        "BLOCK_G": block_h if q.dtype is torch.float32 else 16,
        "BLOCK_N": config.block_n,
        "BLOCK_D": block_d,
        "MERGE_S": max(1, _MERGE_ELEMENTS // (block_h * block_d)),
        "MERGE_G": block_h,
    }


def call_of_shapes(
    *,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    num_rows: int,
    num_kv_heads: int,
    group_size: int,
    head_dim: int,
    block_size: int,
    max_keys: int,
    sliding_window: int | None = None,
) -> dict[str, Any]:
    """What `paged_decode` is called with for a batch of these shapes on an H200, with tensors that have no memory."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    num_heads, width = group_size * num_kv_heads, -(-max_keys // block_size)
    qkv = empty(num_rows, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    q = qkv[:, : num_heads * head_dim].unflatten(1, (num_heads, head_dim))
    kv_cache = empty(64, block_size, 2, num_kv_heads, head_dim, dtype=kv_dtype)
    return {
        "q": q,
        "kv_cache": kv_cache,
        "block_table": empty(num_rows, width, dtype=torch.int32),
        "context_lens": empty(num_rows, dtype=torch.int32),
        "scale": head_dim**-0.5,
        "sliding_window": sliding_window,
        "kv_scales": None if kv_dtype == dtype else empty(*kv_cache.shape[:4], dtype=torch.float32),
        "counters": empty(num_rows * num_kv_heads, dtype=torch.int32),
    }


def _next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
