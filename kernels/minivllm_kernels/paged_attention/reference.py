"""What attention over the paged cache means.

Shape suffixes: N packed query tokens of all requests, R requests, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def paged_attention_reference(
    q_NHD: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    context_lens: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """Causal attention of each request's newest tokens over all of its keys, cached and new, one head at a time.

    Request r owns queries `[cu_seqlens_q[r], cu_seqlens_q[r + 1])`; they are the last of its `context_lens[r]` tokens,
    whose keys and values are in the cache already. A query at position p sees keys `[0, p]`, or the last
    `sliding_window` of them. Query head h reads key/value head `h // (H // K)`.

    Args:
        q_NHD: [N, H, D], any float dtype, rotary applied.
        kv_cache: [num_blocks, block_size, 2, K, D], any dtype; index 0 of dim 2 is K, 1 is V. Slots that no request
            reaches may hold anything, NaN included.
        block_table: [R, max_blocks] int32: token t of request r is in slot `t % block_size` of block
            `block_table[r, t // block_size]`; padded with -1.
        cu_seqlens_q: [R + 1] int32; equal neighbours are a request without queries.
        context_lens: [R] int32, at least the request's queries.
        scale: multiplies the scores, 1 / sqrt(D) as a rule.
        sliding_window: keys that a query sees, itself included; None is all.
        kv_scales: [num_blocks, block_size, 2, K]: a number in the cache times its scale is its value; None is 1.

    Returns:
        [N, H, D] in the dtype of `q_NHD`, computed in float64. Queries from `cu_seqlens_q[R]` on belong to nobody: 0.

    Source: "Efficient memory management for LLM serving with PagedAttention" (arXiv 2309.06180), section 4.1; GQA:
    arXiv 2305.13245; sliding window: Mistral 7B (arXiv 2310.06825), section 2.
    """
    assert sliding_window is None or sliding_window >= 1, f"a query sees itself, not {sliding_window} keys"
    block_size, num_heads = kv_cache.shape[1], q_NHD.shape[1]
    group_size = num_heads // kv_cache.shape[3]
    bounds = cu_seqlens_q.tolist()
    out_NHD = torch.zeros_like(q_NHD)
    for request, context_len in enumerate(context_lens.tolist()):
        first, end = bounds[request], bounds[request + 1]
        assert context_len >= end - first, f"{end - first} queries in a context of {context_len}"
        num_blocks = -(-context_len // block_size)
        block_ids = block_table[request, :num_blocks].long()
        assert bool((block_ids >= 0).all()), f"request {request} lacks blocks for {context_len} tokens"
        # [context_len, 2, K, D]
        kv = kv_cache[block_ids].flatten(0, 1)[:context_len].double()
        if kv_scales is not None:
            kv = kv * kv_scales[block_ids].flatten(0, 1)[:context_len, ..., None].double()
        for query in range(first, end):
            seen_end = context_len - (end - 1 - query)
            seen_start = 0 if sliding_window is None else max(0, seen_end - sliding_window)
            for head in range(num_heads):
                keys, values = kv[seen_start:seen_end, :, head // group_size].unbind(dim=1)
                probabilities = (keys @ q_NHD[query, head].double() * scale).softmax(dim=-1)
                out_NHD[query, head] = (probabilities @ values).to(out_NHD.dtype)
    return out_NHD
