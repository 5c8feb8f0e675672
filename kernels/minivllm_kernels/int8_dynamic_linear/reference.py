"""What a linear layer means whose activations and weight are both 8-bit integers (W8A8)."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row by its largest magnitude: x ~ scale * code.

    Args:
        x: [N, in], any float dtype.

    Returns:
        ([N, in] int8 codes in -127..127, halves to even; [N] float32 scales). A row of zeros has scale 0 and codes 0.
    """
    x = x.float()
    largest = x.abs().amax(dim=1)
    scales = largest / 127
    # By the inverse of the scale, in float32: that is the arithmetic that kernels agree on to the bit.
    inverse = torch.where(largest > 0, 127 / largest, torch.zeros_like(largest))
    return (x * inverse[:, None]).round().to(torch.int8), scales


def int8_dynamic_linear_reference(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b with x rounded by row: scale_x * scale_w * (sum of integer products, exact) + b.

    Args:
        x: [N, in], any float dtype.
        codes: [out, in] int8, -127..127.
        scales: [out] float32.
        bias: [out] or None.

    Returns:
        [N, out] in the dtype of x.
    """
    x_codes, x_scales = quantize_rows_reference(x)
    sums = x_codes.double() @ codes.double().t()
    product = sums * x_scales.double()[:, None] * scales.double()
    return (product if bias is None else product + bias.double()).to(x.dtype)
