"""A weight in codes and scales: what every scheme of ours makes, a ready checkpoint holds and every kernel packs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of a scale: what kernels keep. Codes are chosen for the scale as it is kept, not as it was computed.
SCALE_DTYPE = torch.float16
_MIDDLE = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedWeight:
    """W = scale * (code - zero), each group of neighbouring inputs of a row with a scale and a zero of its own.

    Args:
        kind: `int4`, `int8` or `fp8` (e4m3).
        codes: [out, in]; int4: uint8 in 0..15, int8: int8, fp8: float8_e4m3fn.
        scales: [out, groups] float32 or float16.
        zeros: [out, groups] uint8 in 0..15, for int4; None is 8 there and 0 elsewhere.
        dynamic: activations are rounded to 8 bits too, row by row, as the product is computed.
        order: [in] int64: column j of the codes is for input order[j], so that inputs of a group lie side by side; the
            operation gathers them. None where columns are in the order of inputs. Only checkpoints made elsewhere have
            one.
    """

    kind: str
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    dynamic: bool = False
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def group_size(self) -> int:
        return int(self.codes.shape[1]) // int(self.scales.shape[1])

    @property
    def bits(self) -> int:
        return 4 if self.kind == "int4" else 8

    def rows(self, index: Tensor | slice) -> QuantizedWeight:
        """Some rows, or all in another order: [n] int64 or a slice."""
        zeros = None if self.zeros is None else self.zeros[index]
        return dataclasses.replace(self, codes=self.codes[index], scales=self.scales[index], zeros=zeros)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in], computed in float32, columns in the order of inputs."""
        grouped = self.codes.to(torch.float32).unflatten(1, (self.scales.shape[1], -1))
        if self.kind == "int4":
            grouped -= _MIDDLE if self.zeros is None else self.zeros[:, :, None].float()
        grouped *= self.scales[:, :, None].float()
        weight = grouped.flatten(1).to(dtype)
        return weight if self.order is None else torch.empty_like(weight).index_copy_(1, self.order, weight)

    def same_form(self, other: QuantizedWeight) -> bool:
        """Whether rows of both may stand in one weight."""

        def form(weight: QuantizedWeight) -> tuple[object, ...]:
            return (weight.kind, weight.shape[1], weight.scales.shape[1], weight.zeros is None, weight.dynamic)

        if self.order is None or other.order is None:
            return form(self) == form(other) and self.order is other.order
        return form(self) == form(other) and torch.equal(self.order, other.order)

    @staticmethod
    def join(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
        """Rows of several weights, one after the other; they have the same form."""
        first = parts[0]
        assert all(part.same_form(first) for part in parts)
        return dataclasses.replace(
            first,
            codes=torch.cat([part.codes for part in parts]),
            scales=torch.cat([part.scales for part in parts]),
            zeros=None if first.zeros is None else torch.cat([p.zeros for p in parts if p.zeros is not None]),
        )


def integer_scales(
    weight: Tensor, *, bits: int, group_size: int, symmetric: bool, shrink: Tensor | float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Scales, and zeros where the grid is not symmetric, that just hold each group's values.

    Args:
        weight: [out, in] float32.
        bits: 4 or 8.
        group_size: divides in.
        symmetric: 8 bits always are.
        shrink: the range is multiplied by this before: values beyond it are clipped. [out, groups] or a number.

    Returns:
        ([out, groups] of SCALE_DTYPE (float32 for 8 bits by row), [out, groups] uint8 or None).
    """
    groups = weight.unflatten(1, (-1, group_size))
    if symmetric or bits == 8:
        limit = 2 ** (bits - 1) - 1
        scales = groups.abs().amax(dim=2) * shrink / limit
        return _kept(scales, by_row=groups.shape[1] == 1 and bits == 8), None
    low, high = groups.amin(dim=2).clamp(max=0) * shrink, groups.amax(dim=2).clamp(min=0) * shrink
    scales = _kept((high - low) / (2**bits - 1), by_row=False)
    zeros = (-low / scales.float()).round().clamp(0, 2**bits - 1).to(torch.uint8)
    return scales, zeros


def _kept(scales: Tensor, *, by_row: bool) -> Tensor:
    # A group of zeros is any scale times codes of zero.
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    if by_row:
        return scales
    # Never rounded to nothing: the smallest float16 is 6e-8.
    return scales.clamp(2**-24, 65504).to(SCALE_DTYPE)


def integer_codes(weight: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int) -> Tensor:
    """The nearest codes on a grid.

    Args:
        weight: [out, in] float32.
        scales, zeros: [out, groups], of `integer_scales`.
        bits: 4 or 8.

    Returns:
        [out, in], uint8 in 0..15 for 4 bits, int8 in -127..127 for 8.
    """
    groups = weight.unflatten(1, (scales.shape[1], -1)) / scales[:, :, None].float()
    if bits == 8:
        return groups.round_().clamp_(-127, 127).to(torch.int8).flatten(1)
    middle = _MIDDLE if zeros is None else zeros[:, :, None].float()
    return groups.round_().add_(middle).clamp_(0, 15).to(torch.uint8).flatten(1)


def round_to_nearest(
    weight: Tensor, *, bits: int, group_size: int | None = None, symmetric: bool = True, dynamic: bool = False
) -> QuantizedWeight:
    """The plain way: each value to the nearest point of its group's grid.

    Args:
        weight: [out, in], any float dtype.
        bits: 4 or 8.
        group_size: inputs that share a scale; a whole row where None.
        symmetric, dynamic: as in `integer_scales` and `QuantizedWeight`.
    """
    values = weight.float()
    group_size = values.shape[1] if group_size is None else group_size
    scales, zeros = integer_scales(values, bits=bits, group_size=group_size, symmetric=symmetric)
    codes = integer_codes(values, scales, zeros, bits=bits)
    return QuantizedWeight(kind=f"int{bits}", codes=codes, scales=scales, zeros=zeros, dynamic=dynamic)
