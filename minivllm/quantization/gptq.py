"""GPTQ: 4-bit codes chosen one input after the other, each one's error made good by those that are still to come.

What is minimised is the error of the product on the calibration text, tr(dW H dW^T) with H = X^T X, not that of the
weights. Rounding column j with error e_j, the best change of the later columns is e_j times a row of the Cholesky
factor of H^-1; that is all there is to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minivllm.config import require
from minivllm.quantization.base import LinearTarget
from minivllm.quantization.calibration import CalibrationText
from minivllm.quantization.int4 import Int4
from minivllm.quantization.weight import QuantizedWeight, integer_scales

# Columns whose changes are gathered before the rest of the weight is touched.
_BLOCK = 128
_SHRINKS = torch.linspace(1.0, 0.5, 26).tolist()


class Gptq(Int4):
    """Choose 4-bit codes by GPTQ.

    Args:
        damp_fraction: of the mean of H's diagonal, added to it.
        act_order: take inputs in the order of their weight in H, largest first. Groups are still of neighbours, their
            scales set beforehand, so that a product needs no permutation.
        search_scales: shrink each group's range to where its rounding error on the text is smallest, before any of it
            is made good. It was found to make no difference.
        calibration: arguments of `CalibrationText`.
        group_size, group_sizes, symmetric, target: as in `Int4`.

    Source: GPTQ (arXiv 2210.17323), algorithm 1.
    """

    def __init__(
        self,
        *,
        target: LinearTarget,
        calibration: Mapping[str, Any],
        group_size: int = 64,
        group_sizes: Mapping[str, int] | None = None,
        symmetric: bool = False,
        damp_fraction: float = 0.01,
        act_order: bool = True,
        search_scales: bool = False,
    ) -> None:
        super().__init__(target=target, group_size=group_size, group_sizes=group_sizes, symmetric=symmetric)
        valid = isinstance(damp_fraction, (int, float)) and damp_fraction > 0
        require(valid, "quantization.damp_fraction", damp_fraction, "above 0")
        self.calibration = CalibrationText(**calibration)
        self._damp_fraction = damp_fraction
        self._act_order = act_order
        self._search_scales = search_scales

    def quantize(self, name: str, weight: Tensor, x: Tensor | None) -> QuantizedWeight:
        assert x is not None, "calibrated"
        size = self.group_size_of(name, weight.shape[1])
        values, hessian = weight.float(), x.t() @ x
        shrink: Tensor | float = 1.0
        if self._search_scales:
            shrink = best_shrinks(values, hessian, size, symmetric=self.symmetric)
        scales, zeros = integer_scales(values, bits=4, group_size=size, symmetric=self.symmetric, shrink=shrink)
        order = hessian.diagonal().argsort(descending=True) if self._act_order else None
        codes = gptq_codes(values, hessian, scales, zeros, damp_fraction=self._damp_fraction, order=order)
        return QuantizedWeight(kind="int4", codes=codes, scales=scales, zeros=zeros)


def best_shrinks(weight: Tensor, hessian: Tensor, group_size: int, *, symmetric: bool) -> Tensor:
    """How far to shrink each group's range so that what its rounding errors do to the product is smallest.

    Args:
        weight: [out, in] float32.
        hessian: [in, in] float32, X^T X.
        group_size, symmetric: as in `integer_scales`.

    Returns:
        [out, in / group_size].
    """
    groups = weight.unflatten(1, (-1, group_size))
    starts = range(0, weight.shape[1], group_size)
    blocks = torch.stack([hessian[start : start + group_size, start : start + group_size] for start in starts])
    best = torch.full(groups.shape[:2], torch.inf, device=weight.device)
    shrinks = torch.ones_like(best)
    for shrink in _SHRINKS:
        scales, zeros = integer_scales(weight, bits=4, group_size=group_size, symmetric=symmetric, shrink=shrink)
        wide = scales.float()[:, :, None]
        middle = 8.0 if zeros is None else zeros.float()[:, :, None]
        rounded = (groups / wide).round_().add_(middle).clamp_(0, 15).sub_(middle).mul_(wide)
        # [groups, out, group_size], for one product a group.
        difference = rounded.sub_(groups).transpose(0, 1)
        error = torch.bmm(difference, blocks).mul_(difference).sum(dim=2).t()
        better = error < best
        best = torch.where(better, error, best)
        shrinks = torch.where(better, torch.full_like(shrinks, shrink), shrinks)
    return shrinks


def gptq_codes(
    weight: Tensor,
    hessian: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    *,
    damp_fraction: float,
    order: Tensor | None = None,
) -> Tensor:
    """Codes on a given grid, column by column.

    Args:
        weight: [out, in] float32.
        hessian: [in, in] float32, X^T X.
        scales, zeros: [out, groups], of `integer_scales`.
        damp_fraction: of the mean diagonal, added to the diagonal; more where the factor would not exist.
        order: [in], the order of the columns; their own where None.

    Returns:
        [out, in] uint8.
    """
    num_inputs = weight.shape[1]
    group_size = num_inputs // scales.shape[1]
    order = torch.arange(num_inputs, device=weight.device) if order is None else order
    # Inputs that the text never fed say nothing; left at zero they would make H singular.
    hessian = hessian.double()
    factor = _inverse_factor(hessian[order][:, order], damp_fraction).float()
    scale_of = scales.float().repeat_interleave(group_size, dim=1)[:, order]
    zero_of = None if zeros is None else zeros.float().repeat_interleave(group_size, dim=1)[:, order]
    left = weight[:, order].clone()
    codes = torch.empty_like(left, dtype=torch.uint8)
    for start in range(0, num_inputs, _BLOCK):
        end = min(start + _BLOCK, num_inputs)
        errors = torch.empty_like(left[:, start:end])
        for j in range(start, end):
            column, scale = left[:, j], scale_of[:, j]
            zero = 8.0 if zero_of is None else zero_of[:, j]
            code = (column / scale).round_().add_(zero).clamp_(0, 15)
            codes[:, j] = code.to(torch.uint8)
            error = (column - (code - zero) * scale) / factor[j, j]
            left[:, j + 1 : end].addr_(error, factor[j, j + 1 : end], alpha=-1)
            errors[:, j - start] = error
        left[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    placed = torch.empty_like(codes)
    placed[:, order] = codes
    return placed


def _inverse_factor(hessian: Tensor, damp_fraction: float) -> Tensor:
    """Upper Cholesky factor of the inverse."""
    diagonal = hessian.diagonal()
    mean = diagonal.mean().clamp(min=1e-12)
    damp = damp_fraction
    while True:
        damped = hessian + torch.diag(torch.full_like(diagonal, float(damp * mean)))
        lower, info = torch.linalg.cholesky_ex(damped)
        if not int(info):
            inverse, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(info):
                return inverse
        damp *= 10
