"""Weights as they are. What is left to choose is the order in memory, and on a CPU that matters.

With our own kernel weights lie in panels (`minivllm_kernels.linear.cpu`): on an AVX-512 core it is 2 to 5 times as fast
as MKL's for 1 to 32 rows of the reference model's shapes, and 1.2 times at 512. For PyTorch's products, MKL multiplies
1 to 32 rows by a small weight stored [in, out] up to twice as fast as by one stored [out, in] (one thread, 256 -> 512,
fp32: 9 against 18 us for 1 row, 33 against 60 for 16; the two meet near 64 rows, where a wide head is 15 % faster as
[out, in]). cuBLAS does not care, and fused kernels expect [out, in].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.quantization.base import LinearOp

LAYOUTS = ("in_out", "out_in", "panels", "invariant")


class InOutLinear:
    """Weight stored [in, out]."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.t().contiguous()
        self.bias = bias

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def look_up(self, rows: Tensor) -> Tensor:
        return self.weight.t().index_select(0, rows)

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return torch.mm(x, self.weight)
        return torch.addmm(self.bias, x, self.weight)


class OutInLinear:
    """Weight stored [out, in]."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def look_up(self, rows: Tensor) -> Tensor:
        return self.weight.index_select(0, rows)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Unquantized:
    """Keep every weight in the dtype of the activations.

    Args:
        layout: `in_out` or `out_in` for PyTorch's products, `panels` for our own CPU kernel, `invariant` for our own
            GPU kernel, whose rows do not depend on the batch; where None it follows the rest and the device.
        kernels: `torch`, `numba` or `triton`, what the engine computes with.
        batch_invariant: what the engine asks for; our CPU kernel always is.
    """

    def __init__(self, layout: str | None = None, *, kernels: str = "torch", batch_invariant: bool = False) -> None:
        self.kernels = kernels
        self.batch_invariant = batch_invariant
        if layout is not None and layout not in LAYOUTS:
            raise ValueError(f"quantization.layout={layout!r}: must be null or one of {', '.join(LAYOUTS)}")
        self.layout = layout

    def make_linear(self, name: str, weight: Tensor, bias: Tensor | None) -> LinearOp:
        layout = self.layout
        if layout is None and self.kernels == "numba":
            layout = "panels"
        elif layout is None and self.kernels == "triton":
            layout = "invariant" if self.batch_invariant else "out_in"
        elif layout is None:
            layout = "in_out" if weight.device.type == "cpu" else "out_in"
        if layout == "panels":
            from minivllm.quantization.panels import PanelLinear

            return PanelLinear(weight, bias)
        if layout == "invariant":
            from minivllm.quantization.invariant import InvariantLinear

            return InvariantLinear(weight, bias)
        return InOutLinear(weight, bias) if layout == "in_out" else OutInLinear(weight, bias)
