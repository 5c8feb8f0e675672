"""Unquantized weights for our own CPU kernel. In a file of its own, as importing it compiles."""

from __future__ import annotations

import torch
from torch import Tensor

from minivllm_kernels.linear.cpu import linear, pack_panels, unpack_rows


class PanelLinear:
    """Weight stored in panels, multiplied by our own CPU kernel: float32 only. The panels take the weight's memory."""

    __slots__ = ("_bias", "_has_bias", "_num_outputs", "_panels")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._num_outputs = weight.shape[0]
        self._panels = pack_panels(weight, overwrite=True)
        self._has_bias = bias is not None
        # The kernel starts its sums from a bias, whole panels of it.
        self._bias = torch.zeros(self._panels.shape[0] * self._panels.shape[2])
        if bias is not None:
            self._bias[: self._num_outputs] = bias

    @property
    def weight_bytes(self) -> int:
        return self._panels.nbytes + (self._bias.nbytes if self._has_bias else 0)

    def look_up(self, rows: Tensor) -> Tensor:
        return unpack_rows(self._panels, rows)

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._panels, self._bias, self._num_outputs)
