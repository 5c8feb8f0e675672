"""Weights as they are. What is left to choose is the order in memory, and on a CPU that matters.

With our own kernel weights lie in panels (`minivllm_kernels.linear.cpu`): on an AVX-512 core it is 2 to 5 times as fast
as MKL's for 1 to 32 rows of the reference model's shapes, and 1.2 times at 512. For PyTorch's products, MKL multiplies
1 to 32 rows by a small weight stored [in, out] up to twice as fast as by one stored [out, in] (one thread, 256 -> 512,
fp32: 9 against 18 us for 1 row, 33 against 60 for 16; the two meet near 64 rows, where a wide head is 15 % faster as
[out, in]). cuBLAS does not care, and fused kernels expect [out, in].
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.config import require
from minivllm.quantization.base import LinearOp, LinearTarget, QuantizationScheme
from minivllm.quantization.linears import make_quantized_linear
from minivllm.quantization.weight import QuantizedWeight

LAYOUTS = ("in_out", "out_in", "panels", "invariant")
WEIGHT_DTYPES = ("bfloat16", "float16")


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


class ReorderedLinear:
    """A quantized weight whose columns are in another order than the inputs."""

    __slots__ = ("_op", "_order")

    look_up = None

    def __init__(self, op: LinearOp, order: Tensor) -> None:
        self._op = op
        self._order = order

    @property
    def weight_bytes(self) -> int:
        return self._op.weight_bytes + self._order.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self._op(x.index_select(1, self._order))


class Unquantized(QuantizationScheme):
    """Keep every weight in the dtype of the activations, or on a CPU in the 16 bits that it has in its checkpoint. A
    checkpoint that is quantized already stays so.

    Args:
        layout: `in_out` or `out_in` for PyTorch's products, `panels` for our own CPU kernel, `invariant` for our own
            GPU kernel, whose rows do not depend on the batch; where None it follows the target.
        weight_dtype: `bfloat16` or `float16`: store weights so and compute in float32, with our own CPU kernel. The
            same tokens as in float32 where that is the checkpoint's own dtype, from half of the bytes.
        target: what the operations are for.
    """

    def __init__(
        self, layout: str | None = None, *, weight_dtype: str | None = None, target: LinearTarget | None = None
    ) -> None:
        super().__init__(target=target or LinearTarget())
        require(layout in (None, *LAYOUTS), "quantization.layout", layout, f"null or one of {', '.join(LAYOUTS)}")
        allowed = f"null or one of {', '.join(WEIGHT_DTYPES)}"
        require(weight_dtype in (None, *WEIGHT_DTYPES), "quantization.weight_dtype", weight_dtype, allowed)
        if weight_dtype is not None and self.target.kernels != "numba":
            raise ValueError(
                f"quantization.weight_dtype={weight_dtype}: is for our CPU kernels, and this engine computes with "
                f"{self.target.kernels}: leave it null and choose execution.dtype={weight_dtype}"
            )
        self.layout = layout
        self.weight_dtype = weight_dtype

    def make_linear(
        self, name: str, weight: Tensor | QuantizedWeight, bias: Tensor | None, x: Tensor | None = None
    ) -> LinearOp:
        if isinstance(weight, QuantizedWeight):
            return self._ready(name, weight, bias)
        if self.weight_dtype is not None:
            from minivllm.quantization.half import HalfLinear

            return HalfLinear(weight.to(getattr(torch, self.weight_dtype)), bias)
        layout = self.layout or self._own_layout(weight)
        if layout == "panels":
            from minivllm.quantization.panels import PanelLinear

            return PanelLinear(weight, bias)
        if layout == "invariant":
            from minivllm.quantization.invariant import InvariantLinear

            return InvariantLinear(weight, bias)
        return InOutLinear(weight, bias) if layout == "in_out" else OutInLinear(weight, bias)

    def _ready(self, name: str, weight: QuantizedWeight, bias: Tensor | None) -> LinearOp:
        try:
            # Kernels know no order: theirs is that of the columns.
            op = make_quantized_linear(dataclasses.replace(weight, order=None), bias, self.target)
        except ValueError as error:
            raise ValueError(
                f"model.path: {name} is {weight.kind} in groups of {weight.group_size} in its checkpoint, which "
                f"execution.kernels={self.target.kernels} does not compute ({error}): choose execution.kernels=torch"
            ) from error
        return op if weight.order is None else ReorderedLinear(op, weight.order)

    def _own_layout(self, weight: Tensor) -> str:
        if self.target.kernels == "numba":
            return "panels"
        if self.target.kernels == "triton":
            return "invariant" if self.target.batch_invariant else "out_in"
        return "in_out" if weight.device.type == "cpu" else "out_in"
