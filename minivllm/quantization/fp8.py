"""8-bit floats (e4m3) for weights and activations, on GPUs that multiply them: Ada, Hopper and later."""

from __future__ import annotations

import torch
from torch import Tensor

from minivllm.quantization.base import IntegerScheme, LinearTarget
from minivllm.quantization.weight import QuantizedWeight

_LARGEST = 448.0
_FIRST_CAPABILITY = (8, 9)


class Fp8(IntegerScheme):
    """Scale each weight's row to the range of e4m3, and each token's activations as they come.

    Args:
        target: what the operations are for.

    Raises:
        ValueError: a device that cannot compute in 8-bit floats.

    Source: FP8 formats for deep learning (arXiv 2209.05433).
    """

    def __init__(self, *, target: LinearTarget) -> None:
        super().__init__(target=target)
        if target.device == "cpu" and target.kernels != "triton":
            raise ValueError("quantization=fp8: a CPU does not multiply 8-bit floats: choose int8_dynamic, or a GPU")
        if target.device == "cuda" and torch.cuda.get_device_capability() < _FIRST_CAPABILITY:
            major, minor = torch.cuda.get_device_capability()
            raise ValueError(
                f"quantization=fp8: {torch.cuda.get_device_name()} is sm_{major}{minor} and does not multiply 8-bit "
                "floats, which needs sm_89 or later: choose int8_dynamic"
            )

    def quantize(self, name: str, weight: Tensor, x: Tensor | None) -> QuantizedWeight:
        values = weight.float()
        scales = values.abs().amax(dim=1, keepdim=True) / _LARGEST
        scales = torch.where(scales > 0, scales, torch.ones_like(scales))
        codes = (values / scales).clamp_(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
        return QuantizedWeight(kind="fp8", codes=codes, scales=scales, dynamic=True)
