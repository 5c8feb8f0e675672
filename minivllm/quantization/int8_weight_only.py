"""8-bit weights, one scale a row (W8A16): half of fp16's bytes, almost without loss. It pays where weights are what is
waited for, at few rows; a product of many rows gains nothing."""

from __future__ import annotations

from torch import Tensor

from minivllm.quantization.base import IntegerScheme
from minivllm.quantization.weight import QuantizedWeight, round_to_nearest


class Int8WeightOnly(IntegerScheme):
    """Round each weight to the nearest of 255 steps of its row."""

    def quantize(self, name: str, weight: Tensor, x: Tensor | None) -> QuantizedWeight:
        return round_to_nearest(weight, bits=8)
