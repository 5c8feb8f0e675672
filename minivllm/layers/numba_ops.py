"""The small parts as compiled CPU kernels, one launch each: float32 only."""

from __future__ import annotations

from torch import Tensor

from minivllm_kernels.rms_norm.cpu import rms_norm
from minivllm_kernels.rotary.cpu import rotate_
from minivllm_kernels.row_max.cpu import row_max
from minivllm_kernels.silu_and_mul.cpu import silu_and_mul


class NumbaNorm:
    """See `Norm`."""

    __slots__ = ("_eps", "_weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    @property
    def weight_bytes(self) -> int:
        return self._weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self._weight, eps=self._eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        return rms_norm(x, self._weight, eps=self._eps, residual=residual)


class NumbaRotary:
    """See `Rotary`."""

    __slots__ = ("_eps", "_norm_weight", "_num_heads", "_rotations")

    def __init__(self, rotations: Tensor, num_heads: int, norm_weight: Tensor | None, eps: float) -> None:
        self._rotations = rotations
        self._num_heads = num_heads
        self._norm_weight = None if norm_weight is None else norm_weight.contiguous()
        self._eps = eps

    @property
    def weight_bytes(self) -> int:
        return 0 if self._norm_weight is None else self._norm_weight.nbytes

    def at(self, positions: Tensor) -> Tensor:
        return positions

    def rotate_(self, qkv: Tensor, at: Tensor) -> None:
        rotate_(
            qkv, at, self._rotations, num_heads=self._num_heads, norm_weight=self._norm_weight, eps=self._eps
        )  # fmt: skip


class NumbaOps:
    """See `LayerOps`."""

    def make_norm(self, weight: Tensor, eps: float) -> NumbaNorm:
        return NumbaNorm(weight, eps)

    def make_rotary(self, rotations: Tensor, num_heads: int, norm_weight: Tensor | None, eps: float) -> NumbaRotary:
        return NumbaRotary(rotations, num_heads, norm_weight, eps)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return silu_and_mul(gate_up)

    def row_max(self, logits_MV: Tensor) -> tuple[Tensor, Tensor]:
        return row_max(logits_MV)
