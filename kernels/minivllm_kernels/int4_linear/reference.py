"""What a linear layer means whose weight is in groups of 4-bit codes."""

from __future__ import annotations

import torch
from torch import Tensor

# The zero of a weight that has no zeros of its own: codes 0..15 stand for -8..7.
MIDDLE = 8


def dequantize_reference(codes: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
    """scale * (code - zero), each group of neighbouring inputs with a scale and a zero of its own.

    Args:
        codes: [out, in] uint8, 0..15.
        scales: [out, in / group_size], any float dtype.
        zeros: as scales, uint8, 0..15; None is 8 everywhere.

    Returns:
        [out, in] float64.
    """
    group_size = codes.shape[1] // scales.shape[1]
    wide_scales = scales.double().repeat_interleave(group_size, dim=1)
    if zeros is None:
        return wide_scales * (codes.double() - MIDDLE)
    return wide_scales * (codes.double() - zeros.double().repeat_interleave(group_size, dim=1))


def int4_linear_reference(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """x W^T + b, W = scale * (code - zero).

    Args:
        x: [N, in], any float dtype.
        codes, scales, zeros: as in `dequantize_reference`.
        bias: [out] or None.

    Returns:
        [N, out] in the dtype of x, computed in float64 and rounded once.
    """
    product = x.to(torch.float64) @ dequantize_reference(codes, scales, zeros).t()
    return (product if bias is None else product + bias.double()).to(x.dtype)
