"""Batches over a paged cache, made up, and what attention over them is, in float64 and chunks that fit any memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Scores of a chunk of queries, all heads, in float64.
_CHUNK_ELEMENTS = 2**27
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What a batch is like.

    Args:
        queries, contexts: of each request; its queries are the last of its context.
        dtype: of q; of the cache too where `cache_dtype` is None.
    """

    queries: tuple[int, ...]
    contexts: tuple[int, ...]
    num_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 256
    dtype: torch.dtype = torch.float16
    cache_dtype: torch.dtype | None = None
    sliding_window: int | None = None

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def kind(self) -> str:
        return str(self.cache_dtype or self.dtype).removeprefix("torch.")

    @property
    def kv_bytes(self) -> int:
        """Keys and values that decoding reads: each once."""
        seen = sum(min(n, self.sliding_window or n) for n in self.contexts)
        return seen * 2 * self.num_kv_heads * self.head_dim * (self.cache_dtype or self.dtype).itemsize

    @property
    def causal_flops(self) -> float:
        """Two products; a query at position p has p + 1 keys."""
        pairs = sum(q * (c - q) + q * (q + 1) / 2 for q, c in zip(self.queries, self.contexts, strict=True))
        return 4 * pairs * self.num_heads * self.head_dim


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Tensors of a batch, laid out as the engine lays them out. What nobody may read is NaN."""

    sizes: Sizes
    # [N, H, D], rows of a wider tensor
    q: Tensor
    kv_cache: Tensor
    kv_scales: Tensor | None
    block_table: Tensor
    cu_seqlens_q: Tensor
    context_lens: Tensor


def make_batch(sizes: Sizes, device: torch.device, generator: torch.Generator, extra_queries: int = 0) -> Batch:
    """Random q, K and V in blocks of random places.

    Args:
        extra_queries: rows of q after the last request's, as padding leaves them.
    """
    num_tokens, size = sum(sizes.queries) + extra_queries, sizes.block_size
    width_qkv = (sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_dim
    qkv = torch.randn((num_tokens, width_qkv), generator=generator, device=device).to(sizes.dtype)
    q = qkv[:, : sizes.num_heads * sizes.head_dim].view(num_tokens, sizes.num_heads, sizes.head_dim)

    num_blocks = [-(-context // size) for context in sizes.contexts]
    # Two blocks belong to nobody.
    total, width = sum(num_blocks) + 2, max(1, *num_blocks) + 1
    order = torch.randperm(total, generator=generator, device=device).int()
    table = torch.full((len(num_blocks), width), -1, dtype=torch.int32, device=device)
    used = torch.zeros((total, size), dtype=torch.bool, device=device)
    first = 0
    for row, (blocks, context) in enumerate(zip(num_blocks, sizes.contexts, strict=True)):
        table[row, :blocks] = order[first : first + blocks]
        slots = torch.arange(blocks * size, device=device) < context
        used[order[first : first + blocks].long()] = slots.view(blocks, size)
        first += blocks
    kv = torch.empty((total, size, 2, sizes.num_kv_heads, sizes.head_dim), dtype=sizes.dtype, device=device)
    kv.normal_(generator=generator)
    kv_scales = None
    if sizes.cache_dtype is not None:
        kv_scales = kv.abs().amax(dim=-1).float() / _LARGEST[sizes.cache_dtype]
        scaled = kv / kv_scales[..., None].to(kv.dtype)
        kv = (scaled.round() if sizes.cache_dtype is torch.int8 else scaled).to(sizes.cache_dtype)
        kv_scales[~used] = float("nan")
    else:
        kv[~used] = float("nan")
    ends = torch.tensor([0, *sizes.queries]).cumsum(0).int().to(device)
    lens = torch.tensor(sizes.contexts, dtype=torch.int32, device=device)
    return Batch(
        sizes=sizes, q=q, kv_cache=kv, kv_scales=kv_scales, block_table=table, cu_seqlens_q=ends, context_lens=lens
    )


def expected_output(batch: Batch, tree_mask: Tensor | None = None) -> Tensor:
    """Attention of every query over all keys that it sees: [N, H, D] float64, 0 for queries of nobody.

    The same meaning as the kernels' own references, which take one query and head at a time; this takes a chunk of
    queries of one request. A test holds them together.
    """
    sizes = batch.sizes
    out = torch.zeros(batch.q.shape, dtype=torch.float64, device=batch.q.device)
    first = 0
    for row, (num_queries, context) in enumerate(zip(sizes.queries, sizes.contexts, strict=True)):
        if num_queries and context:
            rows = slice(first, first + num_queries)
            mask = None if tree_mask is None else tree_mask[rows, :num_queries].bool()
            out[rows] = _of_request(batch, row, batch.q[rows], context, mask)
        first += num_queries
    return out


def _of_request(batch: Batch, row: int, q: Tensor, context: int, tree_mask: Tensor | None) -> Tensor:
    sizes = batch.sizes
    blocks = batch.block_table[row, : -(-context // sizes.block_size)].long()
    kv = batch.kv_cache[blocks].to(torch.float64)
    if batch.kv_scales is not None:
        kv *= batch.kv_scales[blocks][..., None]
    # [2, K, context, D]
    kv = kv.flatten(0, 1)[:context].permute(1, 2, 0, 3)
    num_queries, group = len(q), sizes.num_heads // sizes.num_kv_heads
    chunk = max(1, _CHUNK_ELEMENTS // (sizes.num_heads * context))
    out = []
    for begin in range(0, num_queries, chunk):
        some = q[begin : begin + chunk].double()
        positions = context - num_queries + begin + torch.arange(len(some), device=q.device)
        last = context if tree_mask is not None else int(positions[-1]) + 1
        k, v = kv[0, :, :last], kv[1, :, :last]
        keys = torch.arange(last, device=q.device)
        seen = keys <= positions[:, None]
        if sizes.sliding_window is not None:
            seen &= keys > positions[:, None] - sizes.sliding_window
        if tree_mask is not None:
            seen = (keys < context - num_queries).expand(len(some), -1).clone()
            seen[:, context - num_queries :] = tree_mask[begin : begin + chunk]
        # [K, queries x G, keys]; a query's group side by side
        grouped = some.view(len(some), sizes.num_kv_heads, group, -1).transpose(0, 1).flatten(1, 2)
        scores = grouped @ k.transpose(1, 2) * sizes.scale
        scores.masked_fill_(~seen.repeat_interleave(group, dim=0), float("-inf"))
        # A query of a tree may see nothing, which gives 0.
        product = scores.softmax(dim=-1).nan_to_num_(0.0) @ v
        out.append(product.view(sizes.num_kv_heads, len(some), group, -1).transpose(0, 1).flatten(1, 2))
    return torch.cat(out)


def split_contexts(sizes: Sizes, chunks: Sequence[int]) -> list[Sizes]:
    """One request's prompt in chunks that follow each other."""
    assert sum(chunks) == sizes.contexts[0]
    parts, end = [], 0
    for chunk in chunks:
        end += chunk
        parts.append(replace(sizes, queries=(chunk,), contexts=(end,)))
    return parts
