"""Quantized products with PyTorch's own operations: what `execution.kernels=torch` computes with.

On a CPU torch has packed products for 4 and 8-bit weights. They are fast with bfloat16 activations only: with float32
ones they fall to a reference path 10 to 40 times slower. Widening an 8-bit weight for each call instead takes 33 times
as long for 4 rows of a 4096 x 4096 weight, 1.8 times for 128, 1.1 for 512; for one of 1408 x 256 the two meet at 64
rows, and at 512 it is widening that is 1.3 times as fast. Our own (`execution.kernels=auto`) take float32.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.quantization.base import LinearOp, LinearTarget
from minivllm.quantization.weight import QuantizedWeight

_PACKED_GROUPS = (32, 64, 128, 256)


def make_torch_linear(weight: QuantizedWeight, bias: Tensor | None, target: LinearTarget) -> LinearOp:
    """As `linears.make_quantized_linear`."""
    if weight.kind == "fp8":
        return ScaledMmLinear(weight, bias)
    if weight.dynamic:
        return IntMmLinear(weight, bias)
    if target.device == "cpu" and weight.kind == "int8" and weight.scales.shape[1] == 1:
        return PackedInt8Linear(weight, bias)
    if target.device == "cpu" and _suits_int4pack(weight):
        return PackedInt4Linear(weight, bias)
    return WidenedLinear(weight, bias)


def _suits_int4pack(weight: QuantizedWeight) -> bool:
    num_outputs, num_inputs = weight.shape
    fits = num_outputs % 16 == 0 and num_inputs % 2 == 0
    return weight.kind == "int4" and fits and weight.group_size in _PACKED_GROUPS


class WidenedLinear:
    """The definition: the whole weight is widened for each product."""

    __slots__ = ("_bias", "_num_inputs", "_weight")

    look_up = None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        # Two codes of 4 bits a byte.
        self._num_inputs = weight.shape[1]
        self._weight = weight if weight.kind != "int4" else _halved(weight)
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return _bytes(self._weight.codes, self._weight.scales, self._weight.zeros, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        weight = self._weight if self._weight.kind != "int4" else _doubled(self._weight, self._num_inputs)
        return F.linear(x, weight.dequantize(x.dtype), self._bias)


class PackedInt8Linear:
    """`_weight_int8pack_mm`."""

    __slots__ = ("_bias", "_codes", "_scales")

    look_up = None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        self._codes = weight.codes.contiguous()
        self._scales = weight.scales[:, 0].to(torch.bfloat16)
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return _bytes(self._codes, self._scales, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        y = torch._weight_int8pack_mm(x.to(torch.bfloat16), self._codes, self._scales).to(x.dtype)
        return y if self._bias is None else y + self._bias


class PackedInt4Linear:
    """`_weight_int4pack_mm_for_cpu`."""

    __slots__ = ("_bias", "_codes", "_group_size", "_scales_and_zeros")

    look_up = None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        self._codes = torch._convert_weight_to_int4pack_for_cpu(weight.codes.int(), 1)
        self._group_size = weight.group_size
        zeros = torch.full_like(weight.scales, 8) if weight.zeros is None else weight.zeros
        scales = weight.scales.float()
        # It computes scale * (code - 8) + zero.
        shifts = scales * (8 - zeros.float())
        self._scales_and_zeros = torch.stack([scales, shifts], dim=-1).transpose(0, 1).contiguous().to(torch.bfloat16)
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return _bytes(self._codes, self._scales_and_zeros, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16)
        y = torch._weight_int4pack_mm_for_cpu(rows, self._codes, self._group_size, self._scales_and_zeros).to(x.dtype)
        return y if self._bias is None else y + self._bias


class IntMmLinear:
    """`_int_mm` over rows rounded to 8 bits."""

    __slots__ = ("_bias", "_codes", "_scales")

    look_up = None
    # Of rows, on a GPU: cuBLAS multiplies no fewer.
    _MIN_ROWS = 17

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        self._codes = weight.codes.contiguous()
        self._scales = weight.scales[:, 0].float()
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return _bytes(self._codes, self._scales, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.float()
        largest = rows.abs().amax(dim=1, keepdim=True)
        inverse = torch.where(largest > 0, 127 / largest, torch.zeros_like(largest))
        codes = (rows * inverse).round_().to(torch.int8)
        if x.device.type == "cuda" and len(x) < self._MIN_ROWS:
            codes = F.pad(codes, (0, 0, 0, self._MIN_ROWS - len(x)))
        sums = torch._int_mm(codes, self._codes.t())[: len(x)]
        y = sums.float().mul_(largest / 127).mul_(self._scales).to(x.dtype)
        return y if self._bias is None else y + self._bias


class ScaledMmLinear:
    """`_scaled_mm` over rows rounded to 8-bit floats."""

    __slots__ = ("_bias", "_codes", "_scales")

    look_up = None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        self._codes = weight.codes.contiguous()
        self._scales = weight.scales.float().reshape(1, -1).contiguous()
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return _bytes(self._codes, self._scales, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.float()
        scales = rows.abs().amax(dim=1, keepdim=True).clamp(min=2**-100) / 448
        codes = (rows / scales).clamp_(-448, 448).to(torch.float8_e4m3fn)
        y = torch._scaled_mm(codes, self._codes.t(), scale_a=scales, scale_b=self._scales, out_dtype=torch.bfloat16)
        y = y.to(x.dtype)
        return y if self._bias is None else y + self._bias


def _halved(weight: QuantizedWeight) -> QuantizedWeight:
    codes = F.pad(weight.codes, (0, weight.codes.shape[1] % 2))
    return dataclasses.replace(weight, codes=codes[:, ::2] | codes[:, 1::2] << 4)


def _doubled(weight: QuantizedWeight, num_inputs: int) -> QuantizedWeight:
    codes = torch.stack([weight.codes & 15, weight.codes >> 4], dim=2).flatten(1)[:, :num_inputs]
    return dataclasses.replace(weight, codes=codes)


def _bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
