"""Paged attention as one compiled CPU kernel a layer: float32 only. It agrees with the torch backend within rounding,
and its outputs do not depend on what shares the batch, on chunks or on the block size: not by a bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import AttentionShape, PackedBatch, TreeQueries
from minivllm_kernels.paged_attention.cpu import paged_attention
from minivllm_kernels.prefill_attention.tree import count_seen


@dataclass(frozen=True, kw_only=True, slots=True)
class NumbaMetadata:
    """What `NumbaAttention` made of one batch."""

    positions: Tensor
    slot_mapping: Tensor
    # [N] int64, the request that each packed token belongs to
    token_rows: Tensor
    # [R, max_blocks] int32, contiguous
    block_table: Tensor
    max_context_len: int
    # [N, 2] int64, what each token sees, where there are trees: see `paged_attention`.
    trees: Tensor | None


class NumbaAttention:
    """The backend for CPUs.

    Args:
        shape: the model's attention shape.
        kv_cache: see `AttentionBackend`.
    """

    def __init__(self, shape: AttentionShape, kv_cache: Tensor) -> None:
        if kv_cache.device.type != "cpu" or kv_cache.dtype is not torch.float32:
            raise ValueError(
                f"attention=numba: reads K/V in float32 on a CPU, not {str(kv_cache.dtype).removeprefix('torch.')} on "
                f"{kv_cache.device.type}: choose attention=torch"
            )
        self.shape = shape
        self._layers = list(kv_cache)
        self._scale = shape.head_dim**-0.5

    def prepare(self, batch: PackedBatch) -> NumbaMetadata:
        num_rows, num_tokens = len(batch.context_lens), len(batch.token_ids)
        rows = np.arange(num_rows)
        if num_tokens != num_rows:
            rows = np.repeat(rows, np.diff(batch.cu_seqlens_q))
        return NumbaMetadata(
            positions=batch.positions,
            slot_mapping=batch.slot_mapping,
            token_rows=torch.from_numpy(rows),
            block_table=torch.from_numpy(np.ascontiguousarray(batch.block_table)),
            max_context_len=int(batch.context_lens.max()),
            trees=None if batch.trees is None else _sight(batch, batch.trees),
        )

    def attend(self, qkv: Tensor, layer: int, metadata: NumbaMetadata) -> Tensor:
        return paged_attention(
            qkv,
            self._layers[layer],
            positions=metadata.positions,
            slot_mapping=metadata.slot_mapping,
            token_rows=metadata.token_rows,
            block_table=metadata.block_table,
            max_context_len=metadata.max_context_len,
            num_heads=self.shape.num_heads,
            scale=self._scale,
            sliding_window=self.shape.sliding_windows[layer],
            trees=metadata.trees,
        )


def _sight(batch: PackedBatch, trees: TreeQueries) -> Tensor:
    """[N, 2] int64: what each token sees, as `paged_attention` takes it."""
    query_lens = np.diff(batch.cu_seqlens_q)
    is_tree = np.repeat(trees.is_tree, query_lens)
    num_before = np.repeat(batch.context_lens - query_lens, query_lens)
    num_keys = batch.positions.numpy() + 1
    ends, seen = np.where(is_tree, num_before, num_keys), np.where(is_tree, trees.seen, np.uint64(0))
    # The kernel looks for as many as that.
    assert (ends + count_seen(seen) == num_keys).all(), "a draft that has not one ancestor a depth"
    return torch.from_numpy(np.stack([ends, seen.view(np.int64)], axis=1))
