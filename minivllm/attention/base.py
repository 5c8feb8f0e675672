"""The seam between a model and the device: everything in a forward pass that is not a matrix product of weights.

A model is written against `AttentionBackend`, so a backend can fuse what its hardware likes fused. Metadata is made
once a step by `prepare` and handed through the model as an argument.

Shape suffixes: N packed tokens of all requests, R requests, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """The tokens of one step, packed: request r owns tokens `[cu_seqlens_q[r], cu_seqlens_q[r + 1])`.

    Device tensors where the device reads them, numpy where the host plans with them.
    """

    # [N] int64
    token_ids: Tensor
    # [N] int64, place of each token in its request
    positions: Tensor
    # [N] int64, block_id * block_size + offset: where each token's K/V is written
    slot_mapping: Tensor
    # [R + 1] int32
    cu_seqlens_q: np.ndarray
    # [R] int64, keys that each request's last query sees: computed before plus this step's
    context_lens: np.ndarray
    # [R, max_blocks of this step] int32, padded with -1
    block_table: np.ndarray
    # [num_samples] int64, packed indices of the tokens whose logits are sampled from
    sample_indices: Tensor
    # Where some request's queries are a tree of drafts.
    trees: TreeQueries | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeQueries:
    """Requests whose queries are a tree: the newest token is its root, then come drafts, parents before children.

    Their K/V lie side by side after what was computed before, in the order of the queries, whatever their positions
    (which are depths) are. A query sees all that was computed before, its ancestors and itself.
    """

    # [R] bool
    is_tree: np.ndarray
    # [N] uint64: bit j stands for the j-th query of the same request; no meaning for a request that is no tree. So a
    # tree has at most 64 queries.
    seen: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """What a backend must know of a model before it sees a batch. `sliding_window` counts the keys a query sees,
    itself included; one entry a layer, None where a layer sees all. `batch_invariant` asks for outputs that do not
    change by a bit with what shares the batch, nor with the chunks that a request is computed in."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    sliding_windows: tuple[int | None, ...]
    batch_invariant: bool = False


class AttentionBackend(Protocol):
    """One attention implementation, made once an engine with `shape` and `kv_cache`.

    `kv_cache` is [num_layers, num_blocks, block_size, 2, num_kv_heads, head_dim]; index 0 of dimension 3 is K. The
    runner owns it, the backend writes and reads it. Metadata is the backend's own affair: `prepare` makes it, `attend`
    gets it back.
    """

    def prepare(self, batch: PackedBatch) -> Any:
        """Metadata of a step, made once for all layers."""
        ...

    def attend(self, qkv: Tensor, layer: int, metadata: Any) -> Tensor:
        """Write this step's K/V to its slots, attend causally over each request's whole context.

        Args:
            qkv: [N, (H + 2 K) * D] contiguous: q, k, v of each token, q and k rotated.
            layer: index of the layer.
            metadata: what `prepare` made of this step's batch.

        Returns:
            [N, H * D].
        """
        ...
