"""What the rotary position embedding means.

Shape suffixes: N packed tokens, H heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_reference(x_NHD: Tensor, positions: Tensor, inv_freq: Tensor, *, scaling: float = 1.0) -> Tensor:
    """Turn each pair of features by an angle that grows with the position.

    Feature i is paired with feature `i + D / 2`, as in Hugging Face checkpoints (the paper pairs neighbours; the
    checkpoints' projections are permuted to match). Pair i turns by `positions * inv_freq[i]`.

    Args:
        x_NHD: [N, H, D], queries or keys, any float dtype, D even.
        positions: [N] int, place of each token in its request.
        inv_freq: [D / 2], radians a position; `theta ** (-2 i / D)` where nothing scales it.
        scaling: multiplies the result; above 1 with YaRN (arXiv 2309.00071, section 3.4).

    Returns:
        [N, H, D] in the dtype of `x_NHD`, computed in float64 and rounded once.

    Source: RoFormer (arXiv 2104.09864), section 3.2.2.
    """
    half = x_NHD.shape[-1] // 2
    assert inv_freq.shape == (half,), f"{tuple(inv_freq.shape)} frequencies for {half} pairs"
    # [N, 1, D / 2]
    angles = (positions.double()[:, None] * inv_freq.double())[:, None, :]
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    first, second = x_NHD[..., :half].double(), x_NHD[..., half:].double()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_NHD.dtype)
