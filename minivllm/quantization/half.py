"""Weights in 16 bits for our own CPU kernel. In a file of its own, as importing it compiles."""

from __future__ import annotations

from torch import Tensor

from minivllm_kernels.half_linear.cpu import linear, pack, unpack_rows


class HalfLinear:
    """Weight in panels of bfloat16 or float16, multiplied in float32."""

    __slots__ = ("_bias", "_packed")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = pack(weight)
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return self._packed.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def look_up(self, rows: Tensor) -> Tensor:
        return unpack_rows(self._packed, rows)

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._packed, self._bias)
