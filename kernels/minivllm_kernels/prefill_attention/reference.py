"""What prefill attention means: causal attention over the paged cache, with K/V in 8 bits and draft trees added.

Shape suffixes: N packed query tokens of all requests, R requests, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minivllm_kernels.paged_attention.reference import paged_attention_reference
from minivllm_kernels.prefill_attention.tree import unpack_tree_mask


def prefill_attention_reference(
    q_NHD: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    context_lens: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    kv_scales: Tensor | None = None,
    tree_mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """As `paged_attention_reference`, and for a tree of drafts each query sees the new tokens that its mask names.

    Args:
        q_NHD, block_table, cu_seqlens_q, context_lens, scale, sliding_window: see `paged_attention_reference`.
        kv_cache: [num_blocks, block_size, 2, K, D], of any dtype where there are no scales.
        kv_scales: [num_blocks, block_size, 2, K] float32; what a slot holds is `kv_cache * kv_scales`.
        tree_mask: [N, W] int64 from `pack_tree_mask`. Query i sees all tokens of its request that were computed before
            this step, and of the request's queries those j whose bit `tree_mask[i]` has, itself only if so. A query
            that sees nothing gives 0.
        positions: [N] int64 of the queries, and so of the new keys; for trees with a sliding window, which counts
            positions: key position > query position - window.

    Returns:
        [N, H, D] in the dtype of `q_NHD`, computed in float64.

    Source: tree attention is Medusa's (arXiv 2401.10774), section 2.1.2.
    """
    if kv_scales is not None:
        kv_cache = kv_cache.double() * kv_scales[..., None].double()
    if tree_mask is None:
        return paged_attention_reference(
            q_NHD, kv_cache, block_table, cu_seqlens_q, context_lens, scale=scale, sliding_window=sliding_window
        )

    block_size, num_heads = kv_cache.shape[1], q_NHD.shape[1]
    group_size = num_heads // kv_cache.shape[3]
    bounds, mask = cu_seqlens_q.tolist(), unpack_tree_mask(tree_mask)
    out_NHD = torch.zeros_like(q_NHD)
    for request, context_len in enumerate(context_lens.tolist()):
        first, end = bounds[request], bounds[request + 1]
        num_before = context_len - (end - first)
        block_ids = block_table[request, : -(-context_len // block_size)].long()
        # [context_len, 2, K, D]
        kv = kv_cache[block_ids].flatten(0, 1)[:context_len].double()
        for query in range(first, end):
            drafts = mask[query, : end - first].nonzero().flatten() + num_before
            seen = torch.cat([torch.arange(num_before), drafts])
            if sliding_window is not None:
                assert positions is not None, "a tree's window needs its positions"
                places = torch.cat([torch.arange(num_before), positions[first:end]])
                seen = seen[places[seen] > positions[query] - sliding_window]
            for head in range(num_heads):
                keys, values = kv[seen, :, head // group_size].unbind(dim=1)
                probabilities = (keys @ q_NHD[query, head].double() * scale).softmax(dim=-1)
                out_NHD[query, head] = (probabilities @ values).to(out_NHD.dtype)
    return out_NHD
