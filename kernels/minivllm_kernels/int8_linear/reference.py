"""What a linear layer means whose weight is in 8-bit codes, by row or in groups."""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize_reference(codes: Tensor, scales: Tensor) -> Tensor:
    """scale * code.

    Args:
        codes: [out, in] int8, -127..127 (a checkpoint made elsewhere may have -128).
        scales: [out, groups], any float dtype; groups divides in, and is 1 where a row has one scale.

    Returns:
        [out, in] float64.
    """
    return scales.double().repeat_interleave(codes.shape[1] // scales.shape[1], dim=1) * codes.double()


def int8_linear_reference(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, W = scale * code.

    Args:
        x: [N, in], any float dtype.
        codes, scales: as in `dequantize_reference`.
        bias: [out] or None.

    Returns:
        [N, out] in the dtype of x, computed in float64 and rounded once.
    """
    product = x.to(torch.float64) @ dequantize_reference(codes, scales).t()
    return (product if bias is None else product + bias.double()).to(x.dtype)
