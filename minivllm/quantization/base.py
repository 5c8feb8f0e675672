"""The seam between a model and the precision of its weights.

A scheme is handed each weight once, while the model loads, and gives back the operation that stands for it. So it packs
layer by layer: the full-precision copy of one layer is alive at a time, never that of the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minivllm.quantization.calibration import CalibrationText
from minivllm.quantization.weight import QuantizedWeight


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


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearTarget:
    """What products are computed with.

    Args:
        kernels: `torch`, `numba` or `triton`.
        device: `cpu` or `cuda`.
        dtype: of the activations.
        batch_invariant: a row's result must be bitwise the same in any batch; our CPU kernels' always is.
    """

    kernels: str = "torch"
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    batch_invariant: bool = False


class QuantizationScheme(ABC):
    """Makes the operation for each projection of a model.

    Args:
        target: what the operations are for.
    """

    # What the scheme wants to see flow through the model before it decides; None where weights are all it needs.
    calibration: CalibrationText | None = None

    def __init__(self, *, target: LinearTarget) -> None:
        self.target = target

    def input_scale(self, name: str, weight: Tensor, x: Tensor) -> Tensor | None:
        """Factors by which the weight's columns are multiplied, and what flows in divided, before it is quantized: the
        product stays the same and becomes easier to round. The model folds the division into what comes before.

        Args:
            name, weight: as in `make_linear`.
            x: [T, in] float32, what flows in on the calibration text.

        Returns:
            [in] float32, all positive, or None for none. Called only with `calibration`, and never for `o`, whose
            inputs are made by several heads from one value.
        """
        return None

    @abstractmethod
    def make_linear(
        self, name: str, weight: Tensor | QuantizedWeight, bias: Tensor | None, x: Tensor | None = None
    ) -> LinearOp:
        """Take over one weight.

        Args:
            name: `layers.3.qkv`, `layers.3.o`, `layers.3.gate_up`, `layers.3.down` or `lm_head`.
            weight: [out, in], on the device, in the dtype of the activations, or in the codes of a checkpoint that is
                quantized already. It is the scheme's from here on and may be overwritten, but by an operation without
                `look_up` only where it is not `lm_head`.
            bias: [out] or None.
            x: [T, in] float32, what flows in on the calibration text, rounded weights before it included; None without
                `calibration`.

        Raises:
            ValueError: a weight that does not suit the scheme, by name.
        """


class IntegerScheme(QuantizationScheme):
    """A scheme that chooses codes, and leaves the product to the kernels of the target."""

    @abstractmethod
    def quantize(self, name: str, weight: Tensor, x: Tensor | None) -> QuantizedWeight:
        """Choose the codes; arguments as in `make_linear`."""

    def make_linear(
        self, name: str, weight: Tensor | QuantizedWeight, bias: Tensor | None, x: Tensor | None = None
    ) -> LinearOp:
        from minivllm.quantization.linears import make_quantized_linear

        if isinstance(weight, QuantizedWeight):
            raise ValueError(
                f"quantization: {name} comes as {weight.kind} from a checkpoint that is quantized already: choose "
                "quantization=none, which leaves it as it is"
            )
        return make_quantized_linear(self.quantize(name, weight, x), bias, self.target)
