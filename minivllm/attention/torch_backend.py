"""Paged attention with plain torch: the backend for CPUs, and the one that all others must agree with.

A step's requests have different query lengths and contexts. They are put into few groups of similar shape, each padded
to its own maximum, and a layer runs one scaled dot-product attention a group: never one a request. All that depends
on the batch alone (groups, gather indices, masks) is made once a step.

Shape suffixes: B requests of a group, Q padded query length, S padded keys, K key/value heads, G query heads a K/V
head, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.attention.base import AttentionShape, PackedBatch
from minivllm_kernels.prefill_attention.tree import count_seen, newest_seen

# How much padding a group may carry, in keys read and in (query, key) pairs computed, before the next request opens a
# group of its own. Chosen from the cost of an operation and of a gathered key; not tuned by a sweep.
_MAX_PADDED_KEYS = 1024
_MAX_PADDED_PAIRS = 64 * 1024


# A tree's place in its group, where its own keys lie, and which of them each padded query sees: [Q] uint64.
_Tree = tuple[int, slice, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """Requests that share one attention call."""

    num_requests: int
    query_len: int
    num_keys: int
    # [B * Q] packed token of each padded query, or None where the group is the whole batch without padding.
    query_indices: Tensor | None
    # [B * blocks] block of each padded key, a slice where one request's blocks lie side by side (nothing to gather), or
    # None where the step's own keys are all there is.
    block_ids: Tensor | slice | None
    # [B, 1, Q * G, S] additive, or [B, 1, 1, S] for single queries, by sliding window. Empty where the causal flag says
    # it all.
    masks: dict[int | None, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchMetadata:
    """What `TorchAttention` made of one batch."""

    slot_mapping: Tensor
    groups: tuple[_Group, ...]
    # [N] row of each packed token in the groups' stacked outputs, or None where they are in order already.
    output_indices: Tensor | None


class TorchAttention:
    """The torch backend.

    Args:
        shape: the model's attention shape.
        kv_cache: see `AttentionBackend`.
    """

    def __init__(self, shape: AttentionShape, kv_cache: Tensor) -> None:
        self.shape = shape
        self.group_size = shape.num_heads // shape.num_kv_heads
        self._q_size = shape.num_heads * shape.head_dim
        self._windows = tuple(dict.fromkeys(shape.sliding_windows))
        # Views of each layer, made once: [num_slots, 2 * K * D] to write tokens, [num_blocks, -1] to read blocks.
        self._slots = [layer.view(-1, 2 * shape.num_kv_heads * shape.head_dim) for layer in kv_cache]
        self._blocks = [layer.flatten(1) for layer in kv_cache]

    def prepare(self, batch: PackedBatch) -> TorchMetadata:
        query_lens = np.diff(batch.cu_seqlens_q)
        members = _grouped(query_lens, batch.context_lens)
        groups = tuple(self._make_group(batch, query_lens, rows) for rows in members)
        output_indices = None
        if any(group.query_indices is not None for group in groups):
            output_indices = _output_indices(batch, query_lens, members)
        return TorchMetadata(slot_mapping=batch.slot_mapping, groups=groups, output_indices=output_indices)

    def _make_group(self, batch: PackedBatch, query_lens: np.ndarray, rows: np.ndarray) -> _Group:
        device = batch.token_ids.device
        lens, contexts = query_lens[rows], batch.context_lens[rows]
        query_len = int(lens.max())
        whole = len(rows) == len(query_lens) and int(lens.min()) == query_len and bool((np.diff(rows) == 1).all())
        # [B, Q] place of each padded query among its request's, and among all.
        offsets = np.minimum(np.arange(query_len), lens[:, None] - 1)
        queries = batch.cu_seqlens_q[rows][:, None] + offsets
        query_indices = None
        if not whole:
            query_indices = torch.from_numpy(queries.ravel().astype(np.int64)).to(device)
        tree_rows = [] if batch.trees is None else np.flatnonzero(batch.trees.is_tree[rows]).tolist()
        whole_prompt = len(rows) == 1 and query_len > 1 and int(contexts[0]) == query_len and not tree_rows
        if whole_prompt and self._windows == (None,):
            # A whole prompt: its keys are in this step's tensors, and the causal flag masks them.
            return _Group(
                num_requests=1, query_len=query_len, num_keys=query_len, query_indices=query_indices,
                block_ids=None, masks={},
            )  # fmt: skip
        num_blocks = -(-int(contexts.max()) // self.shape.block_size)
        # Padding reads block 0, and the mask hides it.
        blocks = np.maximum(batch.block_table[rows, :num_blocks], 0).ravel()
        num_keys = num_blocks * self.shape.block_size
        # Of each padded query its position, and the end of the keys that it sees whatever it is.
        positions = (contexts - lens)[:, None] + offsets
        ends = positions + 1
        trees: list[_Tree] = []
        for i in tree_rows:
            assert batch.trees is not None
            seen = batch.trees.seen[queries[i]]
            ends[i] = contexts[i] - lens[i]
            # A draft is as deep as it has ancestors.
            positions[i] = ends[i] + count_seen(seen) - 1
            trees.append((i, slice(int(ends[i, 0]), int(contexts[i])), seen))
        return _Group(
            num_requests=len(rows),
            query_len=query_len,
            num_keys=num_keys,
            query_indices=query_indices,
            block_ids=_side_by_side(blocks, len(rows)) or torch.from_numpy(blocks).to(device),
            masks={window: self._mask(positions, ends, trees, num_keys, window).to(device) for window in self._windows},
        )

    def _mask(
        self, positions_BQ: np.ndarray, ends_BQ: np.ndarray, trees: list[_Tree], num_keys: int, window: int | None
    ) -> Tensor:
        keys_S = np.arange(num_keys)
        hidden = keys_S >= ends_BQ[..., None]
        if window is not None:
            hidden |= keys_S <= positions_BQ[..., None] - window
        for i, own_keys, seen in trees:
            bits = seen if window is None else newest_seen(seen, window)
            bits = bits[:, None] >> np.arange(own_keys.stop - own_keys.start, dtype=np.uint64)
            hidden[i, :, own_keys] = (bits & np.uint64(1)) == 0
        # Query rows are (position, head of the group), as `attend` lays them out; of one position all are alike.
        if positions_BQ.shape[1] > 1:
            hidden = np.repeat(hidden, self.group_size, axis=1)
        mask = np.zeros(hidden.shape, dtype=np.float32)
        mask[hidden] = -np.inf
        return torch.from_numpy(mask[:, None])

    def attend(self, qkv: Tensor, layer: int, metadata: TorchMetadata) -> Tensor:
        self._slots[layer].index_copy_(0, metadata.slot_mapping, qkv[:, self._q_size :])
        window = self.shape.sliding_windows[layer]
        outputs = []
        for group in metadata.groups:
            rows = qkv if group.query_indices is None else qkv.index_select(0, group.query_indices)
            if group.block_ids is None:
                outputs.append(self._attend_causal(rows))
            else:
                blocks, ids = self._blocks[layer], group.block_ids
                kv = blocks[ids] if isinstance(ids, slice) else blocks.index_select(0, ids)
                outputs.append(self._attend_masked(rows[:, : self._q_size], kv, group, group.masks[window]))
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if metadata.output_indices is not None:
            output = output.index_select(0, metadata.output_indices)
        return output

    def _attend_causal(self, qkv: Tensor) -> Tensor:
        shape, num_tokens = self.shape, qkv.shape[0]
        heads = qkv.view(1, num_tokens, -1, shape.head_dim).transpose(1, 2)
        q, k, v = heads.split((shape.num_heads, shape.num_kv_heads, shape.num_kv_heads), dim=1)
        if self.group_size > 1:
            k, v = k.repeat_interleave(self.group_size, dim=1), v.repeat_interleave(self.group_size, dim=1)
        output = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return output.transpose(1, 2).reshape(num_tokens, -1)

    def _attend_masked(self, q: Tensor, kv: Tensor, group: _Group, mask: Tensor) -> Tensor:
        """The heads of a K/V head's group are further query rows, so that its keys are read once for all of them."""
        K, G, D = self.shape.num_kv_heads, self.group_size, self.shape.head_dim
        B, Q = group.num_requests, group.query_len
        k, v = kv.view(B, group.num_keys, 2, K, D).permute(2, 0, 3, 1, 4).unbind(0)
        mask = mask if mask.dtype == q.dtype else mask.to(q.dtype)
        if Q == 1:
            output = F.scaled_dot_product_attention(q.view(B, K, G, D), k, v, attn_mask=mask)
            return output.reshape(B, K * G * D)
        q = q.view(B, Q, K, G, D).transpose(1, 2).reshape(B, K, Q * G, D)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return output.view(B, K, Q, G, D).transpose(1, 2).reshape(B * Q, K * G * D)


def _side_by_side(blocks: np.ndarray, num_requests: int) -> slice | None:
    """The blocks of one request as a slice, where each is the next one's neighbour."""
    first, last = int(blocks[0]), int(blocks[-1])
    if num_requests == 1 and last - first == len(blocks) - 1 and bool((np.diff(blocks) == 1).all()):
        return slice(first, last + 1)
    return None


def _grouped(query_lens: np.ndarray, context_lens: np.ndarray) -> list[np.ndarray]:
    """Split the requests into groups of similar shape, each in ascending order of place in the batch.

    Greedy over requests sorted by (query length, context): a group closes when the next request would bring more
    padding than a group of its own costs.
    """
    if len(query_lens) == 1:
        return [np.zeros(1, dtype=np.int64)]
    if query_lens.max() == 1 and len(query_lens) * context_lens.max() - context_lens.sum() <= _MAX_PADDED_KEYS:
        # Decodes of similar length, the usual step.
        return [np.arange(len(query_lens))]
    order = np.lexsort((context_lens, query_lens))
    lens, contexts = query_lens.tolist(), context_lens.tolist()
    groups: list[list[int]] = []
    used_keys = used_pairs = max_keys = 0
    for row in order.tolist():
        query_len, num_keys = lens[row], contexts[row]
        if groups:
            size = len(groups[-1]) + 1
            widest = max(max_keys, num_keys)
            padded_keys = size * widest - (used_keys + num_keys)
            padded_pairs = size * query_len * widest - (used_pairs + query_len * num_keys)
            if (query_len == 1) == (lens[groups[-1][0]] == 1) and (
                padded_keys <= _MAX_PADDED_KEYS and padded_pairs <= _MAX_PADDED_PAIRS
            ):
                groups[-1].append(row)
                used_keys, used_pairs, max_keys = used_keys + num_keys, used_pairs + query_len * num_keys, widest
                continue
        groups.append([row])
        used_keys, used_pairs, max_keys = num_keys, query_len * num_keys, num_keys
    return [np.array(sorted(group)) for group in groups]


def _output_indices(batch: PackedBatch, query_lens: np.ndarray, members: list[np.ndarray]) -> Tensor:
    indices = np.empty(int(batch.cu_seqlens_q[-1]), dtype=np.int64)
    base = 0
    for rows in members:
        query_len = int(query_lens[rows].max())
        for i, row in enumerate(rows.tolist()):
            start, end = batch.cu_seqlens_q[row], batch.cu_seqlens_q[row + 1]
            indices[start:end] = base + i * query_len + np.arange(end - start)
        base += len(rows) * query_len
    return torch.from_numpy(indices).to(batch.token_ids.device)
