"""Masks of draft trees, a bit a draft: the kernel shifts one word a row where bytes would be gathered one by one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack_tree_mask(mask: Tensor) -> Tensor:
    """Pack [N, T] bool, T drafts, into [N, ceil(T / 64)] int64: draft j is bit `j % 64` of word `j // 64`."""
    num_words = -(-mask.shape[1] // 64)
    bits = torch.nn.functional.pad(mask.to(torch.int64), (0, num_words * 64 - mask.shape[1]))
    # The bits of a word are disjoint: their sum, modulo 2^64, is their union.
    return (bits.view(-1, num_words, 64) << torch.arange(64, device=mask.device)).sum(dim=-1)


def unpack_tree_mask(packed: Tensor) -> Tensor:
    """Back to [N, 64 * W] bool."""
    return ((packed[..., None] >> torch.arange(64, device=packed.device)) & 1).bool().flatten(1)


def count_seen(seen: np.ndarray) -> np.ndarray:
    """Bits of each word, [N] uint64 to [N] int64: how many queries of its tree a query sees, and so how deep it is."""
    return np.unpackbits(np.ascontiguousarray(seen).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.int64)


def newest_seen(seen: np.ndarray, num_queries: int) -> np.ndarray:
    """Only the last `num_queries` bits of each word, [N] uint64: what a sliding window leaves of a draft's ancestors,
    which are in the order of their positions, one of each."""
    seen = seen.copy()
    while (too_many := count_seen(seen) > num_queries).any():
        # The lowest bit goes.
        seen[too_many] &= seen[too_many] - np.uint64(1)
    return seen
