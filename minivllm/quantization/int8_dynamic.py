"""8-bit weights and activations (W8A8): products of integers, at a multiple of the speed of floats also for many rows.

A row of activations has one scale, so a few large features cost all others their precision. SmoothQuant moves part of
that range to the weights, whose rows have scales of their own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minivllm.config import require
from minivllm.quantization.base import IntegerScheme, LinearTarget
from minivllm.quantization.calibration import CalibrationText
from minivllm.quantization.weight import QuantizedWeight, round_to_nearest


class Int8Dynamic(IntegerScheme):
    """Round weights by row while loading, and activations by token as they come.

    Args:
        smoothquant_alpha: share of the activations' range that moves to the weights, in (0, 1); None moves none and
            needs no text.
        calibration: the text it is measured on, arguments of `CalibrationText`.
        target: what the operations are for.

    Source:
        LLM.int8() (arXiv 2208.07339), section 3, for scales by row and by column; SmoothQuant (arXiv 2211.10438),
        equation 4.
    """

    def __init__(
        self,
        *,
        target: LinearTarget,
        smoothquant_alpha: float | None = None,
        calibration: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(target=target)
        valid = isinstance(smoothquant_alpha, float) and 0 < smoothquant_alpha < 1
        require(smoothquant_alpha is None or valid, "quantization.smoothquant_alpha", smoothquant_alpha, "in (0, 1)")
        if smoothquant_alpha is not None:
            require(bool(calibration), "quantization.calibration", calibration, "given where smoothquant_alpha is")
            self.calibration = CalibrationText(**(calibration or {}))
        self._alpha = smoothquant_alpha

    def input_scale(self, name: str, weight: Tensor, x: Tensor) -> Tensor | None:
        if self._alpha is None:
            return None
        largest_x = x.abs().amax(dim=0).clamp(min=1e-5)
        largest_w = weight.float().abs().amax(dim=0).clamp(min=1e-5)
        return (largest_x**self._alpha / largest_w ** (1 - self._alpha)).clamp(min=1e-4)

    def quantize(self, name: str, weight: Tensor, x: Tensor | None) -> QuantizedWeight:
        return round_to_nearest(weight, bits=8, dynamic=True)
