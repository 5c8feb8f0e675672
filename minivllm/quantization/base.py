"""The seam between a model and the precision of its weights.

A scheme is handed each weight once, while the model loads, and gives back the operation that stands for it. So it packs
layer by layer: the full-precision copy of one projection is alive at a time, never that of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class LinearOp(Protocol):
    """y = x W^T + b, with W stored as the scheme likes."""

    @property
    def weight_bytes(self) -> int:
        """Bytes held for weight, bias, and whatever the scheme adds."""
        ...

    @property
    def look_up(self) -> Callable[[Tensor], Tensor] | None:
        """[N] int64 -> [N, in], rows of the weight as a new tensor, where it is stored without loss, so that a tied
        embedding can share the memory; None where it is not."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out], both in the dtype of the activations."""
        ...


class QuantizationScheme(Protocol):
    """Makes the operation for each projection of a model."""

    def make_linear(self, name: str, weight: Tensor, bias: Tensor | None) -> LinearOp:
        """Take over one weight.

        Args:
            name: `layers.3.qkv`, `layers.3.o`, `layers.3.gate_up`, `layers.3.down` or `lm_head`: a scheme may leave
                some alone, the head above all.
            weight: [out, in], on the device, in the dtype of the activations; the scheme may keep or drop it, not
                change it.
            bias: [out] or None.
        """
        ...
