"""The small parts in plain PyTorch: any device, any dtype."""

from __future__ import annotations

from torch import Tensor

from minivllm.layers.activation import silu_and_mul
from minivllm.layers.norm import RMSNorm
from minivllm.models.rope import apply_rope_


class TorchRotary:
    """See `Rotary`."""

    __slots__ = ("_head_dim", "_norm", "_num_heads", "_rotations")

    def __init__(self, rotations: Tensor, num_heads: int, norm: RMSNorm | None) -> None:
        self._rotations = rotations
        self._num_heads = num_heads
        self._head_dim = 2 * rotations.shape[-1]
        self._norm = norm

    @property
    def weight_bytes(self) -> int:
        return 0 if self._norm is None else self._norm.weight_bytes

    def at(self, positions: Tensor) -> Tensor:
        """[N, 1, D / 2] complex64."""
        return self._rotations.index_select(0, positions)

    def rotate_(self, qkv: Tensor, at: Tensor) -> None:
        qk_NHD = qkv.view(qkv.shape[0], -1, self._head_dim)[:, : self._num_heads]
        if self._norm is not None:
            qk_NHD.copy_(self._norm(qk_NHD))
        apply_rope_(qk_NHD, at)


class TorchOps:
    """See `LayerOps`."""

    def make_norm(self, weight: Tensor, eps: float) -> RMSNorm:
        return RMSNorm(weight, eps)

    def make_rotary(self, rotations: Tensor, num_heads: int, norm_weight: Tensor | None, eps: float) -> TorchRotary:
        norm = None if norm_weight is None else RMSNorm(norm_weight, eps)
        return TorchRotary(rotations, num_heads, norm)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return silu_and_mul(gate_up)

    def row_max(self, logits_MV: Tensor) -> tuple[Tensor, Tensor]:
        # torch takes the first of equal maxima.
        values, places = logits_MV.max(dim=-1)
        return values, places
