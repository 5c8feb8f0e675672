"""AWQ: before weights are rounded to 4 bits, columns that matter are made larger and what flows in smaller.

A column whose input is large costs much when it is rounded; multiplied by s, it is rounded s times finer in the
product. How strongly, and how far to clip each group, is searched on the calibration text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minivllm.quantization.base import LinearTarget
from minivllm.quantization.calibration import CalibrationText
from minivllm.quantization.gptq import best_shrinks
from minivllm.quantization.int4 import Int4
from minivllm.quantization.weight import QuantizedWeight, integer_codes, integer_scales, round_to_nearest

_RATIOS = [step / 20 for step in range(21)]


class Awq(Int4):
    """Choose 4-bit codes by AWQ.

    Args:
        clip: shrink each group's range to where its rounding error on the text is smallest.
        calibration: arguments of `CalibrationText`.
        group_size, group_sizes, symmetric, target: as in `Int4`.

    Source: AWQ (arXiv 2306.00978), section 3.2.
    """

    def __init__(
        self,
        *,
        target: LinearTarget,
        calibration: Mapping[str, Any],
        group_size: int = 64,
        group_sizes: Mapping[str, int] | None = None,
        symmetric: bool = False,
        clip: bool = True,
    ) -> None:
        super().__init__(target=target, group_size=group_size, group_sizes=group_sizes, symmetric=symmetric)
        self.calibration = CalibrationText(**calibration)
        self._clip = clip

    def input_scale(self, name: str, weight: Tensor, x: Tensor) -> Tensor | None:
        size = self.group_size_of(name, weight.shape[1])
        values, hessian = weight.float(), x.t() @ x
        typical = x.abs().mean(dim=0).clamp(min=1e-5)
        best_loss, best = torch.inf, None
        for ratio in _RATIOS:
            scale = typical**ratio
            # Around one, so that neither weights nor inputs leave their range.
            scale = scale / (scale.max() * scale.min()).sqrt()
            rounded = round_to_nearest(values * scale, bits=4, group_size=size, symmetric=self.symmetric)
            error = rounded.dequantize() / scale - values
            loss = float(((error @ hessian) * error).sum())
            if loss < best_loss:
                best_loss, best = loss, scale
        return best

    def quantize(self, name: str, weight: Tensor, x: Tensor | None) -> QuantizedWeight:
        assert x is not None, "calibrated"
        size = self.group_size_of(name, weight.shape[1])
        values = weight.float()
        shrink: Tensor | float = 1.0
        if self._clip:
            shrink = best_shrinks(values, x.t() @ x, size, symmetric=self.symmetric)
        scales, zeros = integer_scales(values, bits=4, group_size=size, symmetric=self.symmetric, shrink=shrink)
        codes = integer_codes(values, scales, zeros, bits=4)
        return QuantizedWeight(kind="int4", codes=codes, scales=scales, zeros=zeros)
