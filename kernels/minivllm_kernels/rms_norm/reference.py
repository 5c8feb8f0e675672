"""What RMSNorm means."""

from __future__ import annotations

from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Divide each row by its root mean square, then scale each feature.

    Args:
        x: [..., C], any float dtype.
        weight: [C].
        eps: added to the mean square, inside the root.

    Returns:
        [..., C] in the dtype of `x`, computed in float64 and rounded once.

    Source: arXiv 1910.07467, equation 4.
    """
    wide = x.double()
    mean_square = wide.square().mean(dim=-1, keepdim=True)
    return (wide / (mean_square + eps).sqrt() * weight.double()).to(x.dtype)
