"""LLM.int8() through bitsandbytes: the field's standard, as it is. 8-bit integers on both sides, and the few input
features beyond a threshold apart from them, in 16 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minivllm.config import require
from minivllm.quantization.base import LinearOp, LinearTarget, QuantizationScheme
from minivllm.quantization.bitsandbytes_support import import_bitsandbytes, require_full_weight
from minivllm.quantization.weight import QuantizedWeight


class LlmInt8Linear:
    """`Linear8bitLt` over one weight."""

    __slots__ = ("_bias", "_layer")

    look_up = None

    def __init__(self, bitsandbytes: Any, weight: Tensor, bias: Tensor | None, threshold: float) -> None:
        num_outputs, num_inputs = weight.shape
        # Made without memory: its own weights would be thrown away.
        layer = bitsandbytes.nn.Linear8bitLt(
            num_inputs, num_outputs, bias=False, has_fp16_weights=False, threshold=threshold, device="meta"
        )
        layer.weight = bitsandbytes.nn.Int8Params(weight.contiguous(), requires_grad=False, has_fp16_weights=False)
        # It is quantized on its way to a device.
        self._layer = layer.to(weight.device).eval()
        # The layer would make it float16.
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        layer = self._layer
        scales = layer.state.SCB if layer.state.SCB is not None else getattr(layer.weight, "SCB", None)
        held = [layer.weight.data, scales, self._bias]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def __call__(self, x: Tensor) -> Tensor:
        # It rounds from float16 whatever it is given, and says so at each call where that is float32.
        rows = x.to(torch.float16) if x.dtype is torch.float32 else x
        y: Tensor = self._layer(rows)
        y = y.to(x.dtype)
        return y if self._bias is None else y + self._bias


class LlmInt8(QuantizationScheme):
    """Quantize with bitsandbytes' LLM.int8().

    Args:
        threshold: magnitude from which an input feature is multiplied in full; 0 for none.
        target: what the operations are for.

    Source: arXiv 2208.07339.
    """

    def __init__(self, *, target: LinearTarget, threshold: float = 6.0) -> None:
        super().__init__(target=target)
        valid = isinstance(threshold, (int, float)) and threshold >= 0
        require(valid, "quantization.threshold", threshold, "0 or more")
        self._threshold = float(threshold)
        self._bitsandbytes = import_bitsandbytes("llm_int8", target)

    def make_linear(
        self, name: str, weight: Tensor | QuantizedWeight, bias: Tensor | None, x: Tensor | None = None
    ) -> LinearOp:
        full = require_full_weight("llm_int8", name, weight)
        return LlmInt8Linear(self._bitsandbytes, full, bias, self._threshold)
