"""RMSNorm (arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * w, over the last dimension.

An eager step on a CPU costs microseconds an operation whatever its size, so the definition's six operations (and the
seven of `F.rms_norm`) are rewritten as four. With C elements,

    sqrt(mean(x^2) + eps) = sqrt(|x|^2 + C eps) / sqrt(C) = hypot(|x|, sqrt(C eps)) / sqrt(C)

and the last factor goes into the weight once. Half precision normalises in float32 and rounds before the weight, as
Hugging Face does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class RMSNorm:
    """One norm.

    Args:
        weight: [..., C]; leading dimensions broadcast against those of x before its last.
        eps: added to the mean square.
    """

    __slots__ = ("_floor", "_rsqrt_size", "_scaled_weight", "eps", "weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        size = weight.shape[-1]
        self.weight = weight
        self.eps = eps
        self._rsqrt_size = size**-0.5
        self._scaled_weight = weight * math.sqrt(size)
        is_full = weight.dtype is torch.float32
        self._floor = torch.tensor(math.sqrt(size * eps if is_full else eps), dtype=torch.float32, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C], a new tensor."""
        if x.dtype is torch.float32:
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x.div(norm.hypot_(self._floor)).mul_(self._scaled_weight)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return x.div(norm.mul_(self._rsqrt_size).hypot_(self._floor)).to(x.dtype).mul_(self.weight)

    @property
    def weight_bytes(self) -> int:
        return int(self.weight.nbytes)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add x to the residual stream in place, and norm the sum: a new tensor."""
        residual.add_(x)
        return self(residual)
