"""4-bit NormalFloat through bitsandbytes: the field's standard, as it is. Every weight is one of 16 quantiles of a
normal distribution, times the largest of its block; nothing is calibrated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minivllm.config import require
from minivllm.quantization.base import LinearOp, LinearTarget, QuantizationScheme
from minivllm.quantization.bitsandbytes_support import import_bitsandbytes, require_full_weight
from minivllm.quantization.weight import QuantizedWeight

_BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)


class Nf4Linear:
    """`matmul_4bit` over one weight."""

    __slots__ = ("_bias", "_bitsandbytes", "_codes", "_state")

    look_up = None

    def __init__(
        self, bitsandbytes: Any, weight: Tensor, bias: Tensor | None, *, block_size: int, double: bool
    ) -> None:
        self._bitsandbytes = bitsandbytes
        self._codes, self._state = bitsandbytes.functional.quantize_4bit(
            weight.contiguous(), blocksize=block_size, quant_type="nf4", compress_statistics=double
        )
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        state = self._state
        held = [self._codes, state.absmax, self._bias]
        if state.nested:
            held += [state.offset, state.state2.absmax]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self._bitsandbytes.matmul_4bit(x, self._codes.t(), quant_state=self._state, bias=self._bias)
        return y


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
