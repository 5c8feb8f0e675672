"""What a linear layer means."""

from __future__ import annotations

from torch import Tensor


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b.

    Args:
        x: [N, in], any float dtype.
        weight: [out, in].
        bias: [out] or None.

    Returns:
        [N, out] in the dtype of `x`, computed in float64 and rounded once.
    """
    product = x.double() @ weight.double().t()
    return (product if bias is None else product + bias.double()).to(x.dtype)
