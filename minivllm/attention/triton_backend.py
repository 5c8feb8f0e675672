"""Paged attention as Triton kernels: requests with one query go to the decode kernel, which splits their keys over the
GPU; requests with more go to the prefill kernel, whose tiles are wide enough for matrix instructions.

Trees of drafts are launched apart from other prefills: their masks are a word a query, and no prompt has to bring one.

A batch-invariant engine sends everybody to the prefill kernel, in tiles of one size: there a query's keys are summed in
one order, whatever its chunk and its neighbours are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import AttentionShape, PackedBatch
from minivllm.transfer import upload
from minivllm_kernels.paged_attention.kernel import paged_decode
from minivllm_kernels.prefill_attention.config import batch_invariant_config
from minivllm_kernels.prefill_attention.kernel import prefill_attention

MAX_HEAD_DIM = 256
# Columns before a row's block table: its context length, that as a tree, the end of its queries, and room up to the
# next multiple of 64 bytes.
_CONTEXT, _TREE_CONTEXT, _END, _HEADER = 0, 4, 8, 16
_MAX_DECODES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Decodes:
    """Requests of one query each."""

    # [R, max_blocks] int32
    block_table: Tensor
    # [R] int32; 0 for a row that is padding
    context_lens: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefills:
    """Requests of any number of queries."""

    block_table: Tensor
    context_lens: Tensor
    # [R + 1] int32, from 0
    cu_seqlens_q: Tensor
    max_query_len: int
    # Of trees: [N, 1] int64, of the queries that are not in `Decodes`; bit j is the request's j-th query.
    tree_mask: Tensor | None = None
    # Of trees, where a layer has a sliding window: [N] int64, of the same.
    positions: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonMetadata:
    """One step: first the decodes' tokens, then those of prefills and trees in any order.

    Where there are prefills and trees, both have all rows that are no decodes, with a context of 0 where a row is the
    other's.
    """

    slot_mapping: Tensor
    decodes: Decodes | None
    prefills: Prefills | None
    trees: Prefills | None = None


class TritonAttention:
    """The backend for GPUs.

    Args:
        shape: the model's attention shape.
        kv_cache: see `AttentionBackend`.

    Raises:
        ValueError: a head size or block size that the kernels do not serve.
    """

    def __init__(self, shape: AttentionShape, kv_cache: Tensor) -> None:
        if shape.head_dim > MAX_HEAD_DIM or shape.head_dim % 2:
            raise ValueError(
                f"attention=triton: serves even head sizes up to {MAX_HEAD_DIM}, and this model has {shape.head_dim}: "
                "choose attention=torch"
            )
        self.shape = shape
        # [num_blocks, block_size, 2, K, D] each
        self.layers = list(kv_cache)
        # [num_slots, 2 * K * D] of each layer, to write tokens
        self._slots = [layer.view(-1, 2 * shape.num_kv_heads * shape.head_dim) for layer in kv_cache]
        self._scale = shape.head_dim**-0.5
        self._has_windows = any(window is not None for window in shape.sliding_windows)
        # Where the splits of a request's keys count who is the last; every launch leaves zeros.
        self._counters = torch.zeros(_MAX_DECODES * shape.num_kv_heads, dtype=torch.int32, device=kv_cache.device)
        self._q_size = shape.num_heads * shape.head_dim
        self._prefill_config = None
        if shape.batch_invariant:
            device = kv_cache.device
            self._prefill_config = batch_invariant_config(
                head_dim=shape.head_dim,
                group_size=shape.num_heads // shape.num_kv_heads,
                num_kv_heads=shape.num_kv_heads,
                dtype_bytes=kv_cache.element_size(),
                quantized=False,
                hopper=device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9,
            )

    def prepare(self, batch: PackedBatch) -> TritonMetadata:
        """Metadata of a batch whose requests with one query come first; any batch is, of none of them."""
        device = batch.token_ids.device
        query_lens = np.diff(batch.cu_seqlens_q)
        several = np.flatnonzero(query_lens != 1)
        num_decodes = int(several[0]) if len(several) else len(query_lens)
        if self.shape.batch_invariant:
            num_decodes = 0
        prefill_lens = query_lens[num_decodes:]
        # One copy to the device for all, [R + 1, _HEADER + max_blocks] int32. All that is cut out of it begins at a
        # multiple of 16 bytes, and rows are as far apart: Triton compiles a kernel once for what is aligned, and once
        # more for what is not.
        width = batch.block_table.shape[1]
        packed = np.full((len(query_lens) + 1, _HEADER + -(-width // _HEADER) * _HEADER), -1, dtype=np.int32)
        packed[1:, _CONTEXT] = batch.context_lens
        packed[:, _END] = batch.cu_seqlens_q - num_decodes
        packed[1:, _HEADER : _HEADER + width] = batch.block_table
        tree_lens = prefill_lens[:0]
        if batch.trees is not None:
            # A tree of its root alone is a decode.
            is_tree = batch.trees.is_tree[num_decodes:]
            tree_lens, prefill_lens = prefill_lens[is_tree], prefill_lens[~is_tree]
            contexts = batch.context_lens[num_decodes:]
            packed[1 + num_decodes :, _CONTEXT] = np.where(is_tree, 0, contexts)
            packed[1 + num_decodes :, _TREE_CONTEXT] = np.where(is_tree, contexts, 0)
        on_device = upload(packed, device)
        context_lens, table = on_device[1:, _CONTEXT], on_device[1:, _HEADER:]
        decodes = prefills = trees = None
        if num_decodes:
            decodes = Decodes(block_table=table[:num_decodes], context_lens=context_lens[:num_decodes].contiguous())
        if len(prefill_lens):
            prefills = Prefills(
                block_table=table[num_decodes:],
                context_lens=context_lens[num_decodes:].contiguous(),
                cu_seqlens_q=on_device[num_decodes:, _END].contiguous(),
                max_query_len=int(prefill_lens.max()),
            )
        if len(tree_lens):
            assert batch.trees is not None
            seen = batch.trees.seen[batch.cu_seqlens_q[num_decodes] :, None].view(np.int64)
            trees = Prefills(
                block_table=table[num_decodes:],
                context_lens=on_device[1 + num_decodes :, _TREE_CONTEXT].contiguous(),
                cu_seqlens_q=on_device[num_decodes:, _END].contiguous(),
                max_query_len=int(tree_lens.max()),
                tree_mask=upload(seen.copy(), device),
                # A copy begins at a multiple of 16 bytes, which the slice may not.
                positions=batch.positions[num_decodes:].clone() if self._has_windows else None,
            )
        return TritonMetadata(slot_mapping=batch.slot_mapping, decodes=decodes, prefills=prefills, trees=trees)

    def attend(self, qkv: Tensor, layer: int, metadata: TritonMetadata) -> Tensor:
        self._slots[layer].index_copy_(0, metadata.slot_mapping, qkv[:, self._q_size :])
        return self.attend_written(qkv, layer, metadata)

    def attend_written(self, qkv: Tensor, layer: int, metadata: TritonMetadata) -> Tensor:
        """As `attend`, with this step's K/V in the cache already."""
        shape, num_tokens = self.shape, qkv.shape[0]
        q = qkv[:, : self._q_size].view(num_tokens, shape.num_heads, shape.head_dim)
        # The prefill kernel leaves padding rows of a decode step alone, and what is in memory must not go through the
        # layers; the decode kernel writes zeros there.
        make = torch.zeros if shape.batch_invariant else torch.empty
        out = make((num_tokens, shape.num_heads, shape.head_dim), dtype=qkv.dtype, device=qkv.device)
        decodes, window, num_decodes = metadata.decodes, shape.sliding_windows[layer], 0
        if decodes is not None:
            num_decodes = len(decodes.context_lens)
            paged_decode(
                q[:num_decodes],
                self.layers[layer],
                decodes.block_table,
                decodes.context_lens,
                scale=self._scale,
                sliding_window=window,
                out=out[:num_decodes],
                counters=self._counters if num_decodes <= _MAX_DECODES else None,
            )
        for prefills in (metadata.prefills, metadata.trees):
            if prefills is None:
                continue
            prefill_attention(
                q[num_decodes:],
                self.layers[layer],
                prefills.block_table,
                prefills.cu_seqlens_q,
                prefills.context_lens,
                max_query_len=prefills.max_query_len,
                scale=self._scale,
                sliding_window=window,
                tree_mask=prefills.tree_mask,
                positions=prefills.positions,
                out=out[num_decodes:],
                config=self._prefill_config,
            )
        return out.view(num_tokens, self._q_size)
