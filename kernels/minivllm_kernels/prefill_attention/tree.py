"""Masks of draft trees, a bit a draft: the kernel shifts one word a row where bytes would be gathered one by one."""

from __future__ import annotations

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
