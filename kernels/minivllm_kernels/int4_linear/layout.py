"""How a weight of 4-bit or 8-bit codes lies in a GPU's memory, so that its kernel unpacks it without moving anything.

Tensor cores want a thread to hold certain rows and columns of a tile. A 32-bit word is loaded by the thread that needs
it and unpacked in place, so what shares a word must be wanted by the same thread:

- Codes. Inputs are cut into stretches of 128, a stretch into slices (eight of 16 inputs for 4 bits, four of 32 for 8),
  and word j of a stretch holds input j of each slice, the first in its lowest bits. Shift and mask then give a tile of
  neighbouring inputs for each slice, laid out over threads as the words were. Stretches come first in memory, outputs
  second: the words of a tile are one piece of memory.
- Scales and zeros, of 16 bits. A thread holds rows j and j + 8 of each 16: they share a word.

Inputs are padded to whole stretches, outputs to whole tiles, with scales of zero: no load of a weight has a mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

# Inputs whose codes lie together: those that one turn of the kernel's loop multiplies.
STRETCH = 128
# Outputs are padded to a multiple of this, the widest tile.
_OUT_MULTIPLE = 128
# Tiles that may be merged from splits; there are fewer, as splits are for when tiles alone do not fill a GPU.
NUM_COUNTERS = 1024


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedCodes:
    """A weight [num_out, num_in] as the kernels read it.

    Args:
        words: [stretches, out padded, 16 or 32] int32.
        scales: [groups padded, out padded / 2] int32, two float16 scales in each, whatever the 16 bits of activations;
            [groups padded, out padded] float32 where they are float32.
        zeros: as scales, but of `dtype`, or None.
        num_out, num_in: of the weight.
        group_size: inputs that share a scale; `num_in` where a row has one scale.
        bits: 4 or 8.
        dtype: of activations and results.
        counters: int32 zeros, left at zero by each launch. So no two launches with one weight may run at a time.
    """

    words: Tensor
    scales: Tensor
    zeros: Tensor | None
    num_out: int
    num_in: int
    group_size: int
    bits: int
    dtype: torch.dtype
    counters: Tensor = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes held, padding included."""
        tensors = [self.words, self.scales, self.counters, *([] if self.zeros is None else [self.zeros])]
        return sum(tensor.nbytes for tensor in tensors)


def pack_codes(codes: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int, dtype: torch.dtype) -> PackedCodes:
    """Lay a weight out.

    Args:
        codes: [out, in] of bytes, of which the lowest `bits` count.
        scales: [out, groups], any float dtype.
        zeros: as scales, integers; None where the kernel knows better.
        dtype: of activations: float16, bfloat16 or float32.
    """
    num_out, num_in = codes.shape
    num_groups = scales.shape[1]
    group_size = num_in // num_groups
    fits = num_groups == 1 or group_size in (32, 64) or group_size % STRETCH == 0
    if num_groups * group_size != num_in or not fits:
        raise ValueError(
            f"quantization.group_size={num_in / num_groups:g} of {num_in} inputs: must be 32, 64, a multiple of 128, "
            f"or all inputs"
        )
    # Whole stretches of groups; a row in one piece has no second scale.
    num_padded = num_groups if num_groups == 1 else -(-num_in // STRETCH) * STRETCH // group_size
    return PackedCodes(
        words=_pack_words(codes, bits),
        # Three bits more than bfloat16: a scale is off for all of its codes alike.
        scales=_pack_rows(scales, num_padded, torch.float32 if dtype is torch.float32 else torch.float16),
        zeros=None if zeros is None else _pack_rows(zeros, num_padded, dtype),
        num_out=num_out,
        num_in=num_in,
        group_size=group_size,
        bits=bits,
        dtype=dtype,
        counters=torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=codes.device),
    )


def padded_out(num_out: int) -> int:
    """Rows of a weight in memory."""
    return -(-num_out // _OUT_MULTIPLE) * _OUT_MULTIPLE


def _pack_words(codes: Tensor, bits: int) -> Tensor:
    """[out, in] of bytes -> [stretches, out padded, words of a stretch] int32."""
    (num_out, num_in), num_slices = codes.shape, 32 // bits
    num_stretches = -(-num_in // STRETCH)
    words = torch.zeros(
        (num_stretches, padded_out(num_out), STRETCH // num_slices), dtype=torch.int32, device=codes.device
    )
    # The kernel counts words in 32 bits.
    assert words.numel() < 2**31, codes.shape
    padded = F.pad(codes.view(torch.uint8), (0, num_stretches * STRETCH - num_in))
    slices = padded.view(num_out, num_stretches, num_slices, STRETCH // num_slices).permute(2, 1, 0, 3)
    mask = (1 << bits) - 1
    for number, part in enumerate(slices):
        words[:, :num_out] |= (part.to(torch.int32) & mask) << (bits * number)
    return words


def _pack_rows(values: Tensor, num_groups: int, dtype: torch.dtype) -> Tensor:
    """[out, groups] -> [groups padded, out padded] float32, or half as many int32 with rows j and j + 8 of each 16."""
    num_out, given = values.shape
    wide = F.pad(values.to(dtype).t(), (0, padded_out(num_out) - num_out, 0, num_groups - given))
    if dtype is torch.float32:
        return wide.contiguous()
    pairs = wide.reshape(num_groups, -1, 2, 8).transpose(2, 3).contiguous()
    return pairs.view(torch.int32).view(num_groups, -1)
