"""From codes to an operation: which kernel multiplies by them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from minivllm.quantization.base import LinearOp, LinearTarget
from minivllm.quantization.torch_linears import make_torch_linear
from minivllm.quantization.weight import QuantizedWeight


class PackedLinear:
    """A weight as a kernel of ours wants it.

    Args:
        multiply: (x, packed, bias) -> [N, out].
        packed: has `nbytes`.
        bias: [out] or None.
    """

    __slots__ = ("_bias", "_multiply", "_packed")

    look_up = None

    def __init__(self, multiply: Callable[..., Tensor], packed: Any, bias: Tensor | None) -> None:
        self._multiply = multiply
        self._packed = packed
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return int(self._packed.nbytes) + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x, self._packed, self._bias)


def make_quantized_linear(weight: QuantizedWeight, bias: Tensor | None, target: LinearTarget) -> LinearOp:
    """The operation for a quantized weight.

    Args:
        weight: on the device.
        bias: [out] or None.
        target: what computes.
    """
    if target.kernels == "torch":
        return make_torch_linear(weight, bias, target)
    op = f"{weight.kind}_dynamic" if weight.dynamic and weight.kind == "int8" else weight.kind
    if target.kernels == "numba":
        kernel = importlib.import_module(f"minivllm_kernels.{op}_linear.cpu")
        return PackedLinear(kernel.linear, _pack(kernel.pack, weight, op, {}), bias)
    kernel = importlib.import_module(f"minivllm_kernels.{op}_linear.kernel")
    if op == "int8_dynamic":
        # Sums of integers are exact: no row knows of the others.
        return PackedLinear(kernel.linear, _pack(kernel.pack, weight, op, {"dtype": target.dtype}), bias)

    def multiply(x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
        product: Tensor = kernel.linear(x, packed, bias, batch_invariant=target.batch_invariant)
        return product

    return PackedLinear(multiply, _pack(kernel.pack, weight, op, {"dtype": target.dtype}), bias)


def _pack(pack: Callable[..., Any], weight: QuantizedWeight, op: str, more: dict[str, Any]) -> Any:
    if op == "int4":
        return pack(weight.codes, weight.scales, weight.zeros, **more)
    if op == "int8":
        return pack(weight.codes, weight.scales, **more)
    # One scale a row, in float32: it multiplies sums, not weights.
    return pack(weight.codes, weight.scales[:, 0].float())
