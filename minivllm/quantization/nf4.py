"""4-bit NormalFloat through bitsandbytes: the field's standard, as it is. Every weight is one of 16 quantiles of a
normal distribution, times the largest of its block; nothing is calibrated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minivllm.config import require
from minivllm.quantization.base import LinearOp, LinearTarget, QuantizationScheme
from minivllm.quantization.bitsandbytes_support import import_bitsandbytes, require_full_weight
from minivllm.quantization.weight import QuantizedWeight

_BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)


class Nf4Linear:
    """`Linear4bit` over one weight.

    On a CPU that multiplies bfloat16 its own fast kernel wants that; elsewhere it computes in the activations' dtype.
    """

    __slots__ = ("_bias", "_layer")

    look_up = None

    def __init__(
        self, bitsandbytes: Any, weight: Tensor, bias: Tensor | None, *, block_size: int, double: bool
    ) -> None:
        num_outputs, num_inputs = weight.shape
        # Made without memory: its own weights would be thrown away.
        layer = bitsandbytes.nn.Linear4bit(num_inputs, num_outputs, bias=False, quant_type="nf4", device="meta")
        fast = weight.device.type == "cpu" and layer.support_avx512bf16_for_cpu
        layer.compute_dtype, layer.compute_type_is_set = torch.bfloat16 if fast else weight.dtype, True
        layer.weight = bitsandbytes.nn.Params4bit(
            weight.contiguous(),
            requires_grad=False,
            blocksize=block_size,
            compress_statistics=double,
            quant_type="nf4",
            module=layer,
        )
        # It is quantized on its way to a device.
        self._layer = layer.to(weight.device).eval()
        # The layer would round it.
        self._bias = bias
        if fast:
            # It lays the weight out for that kernel at its first call.
            with torch.inference_mode():
                self._layer(torch.zeros(1, num_inputs))

    @property
    def weight_bytes(self) -> int:
        weight = self._layer.weight
        state = weight.quant_state
        held = [weight.data, state.absmax, self._bias]
        if state.nested:
            held += [state.offset, state.state2.absmax]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self._layer(x)
        return y if self._bias is None else y + self._bias


class Nf4(QuantizationScheme):
    """Quantize with bitsandbytes' NF4.

    Args:
        block_size: neighbouring weights that share a scale.
        double_quantization: the scales are quantized too, to 8 bits.
        target: what the operations are for.

    Source: QLoRA (arXiv 2305.14314), section 3.
    """

    def __init__(self, *, target: LinearTarget, block_size: int = 64, double_quantization: bool = False) -> None:
        super().__init__(target=target)
        sizes = ", ".join(map(str, _BLOCK_SIZES))
        require(block_size in _BLOCK_SIZES, "quantization.block_size", block_size, f"one of {sizes}")
        require(
            isinstance(double_quantization, bool),
            "quantization.double_quantization",
            double_quantization,
            "true or false",
        )
        self._block_size = block_size
        self._double = double_quantization
        self._bitsandbytes = import_bitsandbytes("nf4", target)

    def make_linear(
        self, name: str, weight: Tensor | QuantizedWeight, bias: Tensor | None, x: Tensor | None = None
    ) -> LinearOp:
        full = require_full_weight("nf4", name, weight)
        return Nf4Linear(self._bitsandbytes, full, bias, block_size=self._block_size, double=self._double)
