"""What SiLU-and-multiply means."""

from __future__ import annotations

import torch
from torch import Tensor


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """The gate's SiLU times the other half.

    Args:
        gate_up: [..., 2 * I], the gate in features `[0, I)`, what it gates in `[I, 2 * I)`; any float dtype.

    Returns:
        [..., I] in the dtype of `gate_up`, computed in float64 and rounded once.

    Source: SwiGLU, "GLU variants improve Transformer" (arXiv 2002.05202), equation 6.
    """
    gate, up = gate_up.double().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)
