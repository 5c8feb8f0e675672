"""How a CPU does it: codes in panels, 8 inputs of an output in a word, made floats in registers; scales in float16.

4.5 bits a weight in groups of 32, 4.125 in groups of 128 (with zeros 4.75 and 4.1875).

See `cpu_tiles` for panels, tiles, the order of a sum, and how codes become floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numba.extending import intrinsic
from torch import Tensor

from minivllm_kernels.cpu_panels import bias_address, group_size_of, panels_of, words_of
from minivllm_kernels.cpu_threads import (
    PREPARE_SIGNATURE,
    TILE_SIGNATURE,
    address,
    cpu_kernel,
    each_prepared_tile,
    each_tile,
    num_threads,
)
from minivllm_kernels.cpu_tiles import (
    ALL_SHAPES,
    HIGH_SHAPES,
    MAX_PAIR_ROWS,
    MAX_ROWS,
    NUM_ARGUMENTS,
    NUM_INPUTS,
    NUM_OUTPUTS,
    NUM_ROWS,
    PANEL_WIDTH,
    SCRATCH,
    code_tile,
    decode_panel,
    emit_tiles,
)

# Up to this many rows every tile makes floats of the codes for itself; beyond, a panel of codes becomes floats once.
_MAX_DIRECT_ROWS = 2 * MAX_ROWS


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedInt4:
    """A weight as `linear` reads it. Made by `pack`.

    Args:
        panels: [P, ceil(in / 8), 32] int32, 8 codes a word.
        scales: [P, groups, 32] float16.
        zeros: as scales, uint8; None is 8 everywhere.
    """

    num_outputs: int
    num_inputs: int
    group_size: int
    panels: Tensor
    scales: Tensor
    zeros: Tensor | None

    @property
    def nbytes(self) -> int:
        """Of what a product reads."""
        return self.panels.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)


def pack(codes: Tensor, scales: Tensor, zeros: Tensor | None = None) -> PackedInt4:
    """Reorder a weight for `linear`.

    Args:
        codes: [out, in] uint8, 0..15, on the CPU.
        scales: [out, groups], any float dtype; kept as float16.
        zeros: [out, groups] uint8, 0..15; None is 8 everywhere.

    Raises:
        ValueError: for groups of a size that is not computed, and for scales that float16 cannot hold.
    """
    group_size = group_size_of(codes, scales)
    assert codes.dtype is torch.uint8, codes.dtype
    halves = scales.to(torch.float16)
    if not halves.isfinite().all():
        raise ValueError(f"a scale of {scales.abs().max().item():g}: scales of 4-bit weights are kept as float16")
    if codes.shape[1] % 2:
        codes = torch.cat([codes, codes.new_zeros(codes.shape[0], 1)], dim=1)
    pairs = codes[:, 1::2] << 4
    pairs |= codes[:, 0::2]
    if zeros is not None:
        assert zeros.dtype is torch.uint8 and zeros.shape == scales.shape, f"{zeros.dtype} {zeros.shape}"
        zeros = panels_of(zeros)
    return PackedInt4(
        num_outputs=codes.shape[0],
        num_inputs=group_size * scales.shape[1],
        group_size=group_size,
        panels=panels_of(words_of(pairs)),
        scales=panels_of(halves),
        zeros=zeros,
    )


def linear(x: Tensor, packed: PackedInt4, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, W = scale * (code - zero).

    Args:
        x: [N, in] float32 contiguous, on the CPU.
        packed: of `pack`.
        bias: [out] float32 or None.

    Returns:
        [N, out] float32.
    """
    num_rows, num_inputs = x.shape
    assert num_inputs == packed.num_inputs, f"{num_inputs} inputs for {packed.num_inputs}"
    out = x.new_empty(num_rows, packed.num_outputs)
    # A panel of floats for each thread.
    scratch = x.new_empty(num_threads() * num_inputs * PANEL_WIDTH) if num_rows > _MAX_DIRECT_ROWS else None
    _linear(
        address(x),
        packed.panels.data_ptr(),
        packed.scales.data_ptr(),
        0 if packed.zeros is None else packed.zeros.data_ptr(),
        bias_address(bias, packed.num_outputs),
        address(out),
        0 if scratch is None else scratch.data_ptr(),
        num_rows,
        num_inputs,
        packed.num_outputs,
        packed.group_size,
    )
    return out


@intrinsic
def _tile(typingctx: Any, a: Any, scratch: Any, panel: Any, num_panels: Any, first: Any, rows: Any, width: Any) -> Any:
    return TILE_SIGNATURE, lambda context, builder, sig, args: emit_tiles(
        builder, args, ALL_SHAPES, lambda tile: code_tile(tile, 4, is_decoded=False)
    )


@intrinsic
def _tile_of_decoded(
    typingctx: Any, a: Any, scratch: Any, panel: Any, num_panels: Any, first: Any, rows: Any, width: Any
) -> Any:
    return TILE_SIGNATURE, lambda context, builder, sig, args: emit_tiles(
        builder, args, HIGH_SHAPES, lambda tile: code_tile(tile, 4, is_decoded=True)
    )


@intrinsic
def _decode(typingctx: Any, a: Any, scratch: Any, panel: Any) -> Any:
    return PREPARE_SIGNATURE, lambda context, builder, sig, args: decode_panel(builder, args, 4)


@cpu_kernel(NUM_ARGUMENTS)
def _linear(a: Any) -> None:
    num_rows, num_outputs, num_threads = a[NUM_ROWS], a[NUM_OUTPUTS], a[NUM_ARGUMENTS]
    if num_rows <= _MAX_DIRECT_ROWS:
        each_tile(_tile, a, 0, num_rows, num_outputs, num_threads, PANEL_WIDTH, MAX_ROWS, MAX_PAIR_ROWS)
    else:
        each_prepared_tile(
            _decode, _tile_of_decoded, a, a[SCRATCH], 4 * PANEL_WIDTH * a[NUM_INPUTS],
            num_rows, num_outputs, num_threads, PANEL_WIDTH, MAX_ROWS,
        )  # fmt: skip
