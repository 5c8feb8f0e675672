"""The small parts as Triton kernels, one launch each: any float dtype on a GPU, fp32 and fp16 under the interpreter."""

from __future__ import annotations

import torch
from torch import Tensor

from minivllm_kernels.rms_norm.kernel import add_rms_norm_, rms_norm
from minivllm_kernels.rotary_and_cache.kernel import rotary_and_cache_
from minivllm_kernels.silu_and_mul.kernel import silu_and_mul


class TritonNorm:
    """See `Norm`."""

    __slots__ = ("_eps", "_weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    @property
    def weight_bytes(self) -> int:
        return int(self._weight.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self._weight, eps=self._eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        return add_rms_norm_(x, residual, self._weight, eps=self._eps)


class TritonRotary:
    """See `WritingRotary`."""

    __slots__ = ("_eps", "_head_dim", "_norm_weight", "_num_heads", "_rotations")

    def __init__(self, rotations: Tensor, num_heads: int, norm_weight: Tensor | None, eps: float) -> None:
        # [max_len, D / 2, 2] float32
        self._rotations = torch.view_as_real(rotations.squeeze(1))
        self._num_heads = num_heads
        self._head_dim = 2 * rotations.shape[-1]
        self._norm_weight = None if norm_weight is None else norm_weight.contiguous()
        self._eps = eps

    @property
    def weight_bytes(self) -> int:
        return 0 if self._norm_weight is None else int(self._norm_weight.nbytes)

    def at(self, positions: Tensor) -> Tensor:
        return positions

    def rotate_(self, qkv: Tensor, at: Tensor) -> None:
        self._launch(qkv, at, None, None)

    def rotate_and_write_(self, qkv: Tensor, at: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
        self._launch(qkv, at, kv_cache, slot_mapping)

    def _launch(self, qkv: Tensor, at: Tensor, kv_cache: Tensor | None, slot_mapping: Tensor | None) -> None:
        num_kv_heads = qkv.shape[1] // self._head_dim - self._num_heads
        rotary_and_cache_(
            qkv,
            at,
            self._rotations,
            num_heads=self._num_heads - num_kv_heads,
            num_kv_heads=num_kv_heads,
            head_dim=self._head_dim,
            norm_weight=self._norm_weight,
            eps=self._eps,
            kv_cache=kv_cache,
            slot_mapping=slot_mapping,
        )


class TritonOps:
    """See `LayerOps`."""

    def make_norm(self, weight: Tensor, eps: float) -> TritonNorm:
        return TritonNorm(weight, eps)

    def make_rotary(self, rotations: Tensor, num_heads: int, norm_weight: Tensor | None, eps: float) -> TritonRotary:
        return TritonRotary(rotations, num_heads, norm_weight, eps)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return silu_and_mul(gate_up)

    def row_max(self, logits_MV: Tensor) -> tuple[Tensor, Tensor]:
        values, places = logits_MV.max(dim=-1)
        return values, places
