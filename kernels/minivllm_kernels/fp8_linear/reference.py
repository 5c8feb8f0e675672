"""What a linear layer means whose activations and weight are both 8-bit floats."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 448.0


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row by its largest magnitude: x ~ scale * code.

    Args:
        x: [N, in], any float dtype.

    Returns:
        ([N, in] float8_e4m3fn codes; [N] float32 scales). A row of zeros has scale 0 and codes 0.
    """
    x = x.float()
    largest = x.abs().amax(dim=1)
    inverse = torch.where(largest > 0, LARGEST / largest, torch.zeros_like(largest))
    return (x * inverse[:, None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), largest / LARGEST


def fp8_linear_reference(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b with x rounded by row: scale_x * scale_w * (sum of products of 8-bit floats) + b.

    Args:
        x: [N, in], any float dtype.
        codes: [out, in] float8_e4m3fn.
        scales: [out] float32.
        bias: [out] or None.

    Returns:
        [N, out] in the dtype of x.
    """
    x_codes, x_scales = quantize_rows_reference(x)
    sums = x_codes.double() @ codes.double().t()
    product = sums * x_scales.double()[:, None] * scales.double()
    return (product if bias is None else product + bias.double()).to(x.dtype)
