"""How a CPU does it: codes in panels, 4 inputs of an output in a word, made floats in registers.

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
class PackedInt8:
    """A weight as `linear` reads it. Made by `pack`.

    Args:
        panels: [P, ceil(in / 4), 32] int32, 4 codes a word, each 128 too large: 0..255.
        scales: [P, groups, 32] float32.
    """

    num_outputs: int
    num_inputs: int
    group_size: int
    panels: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        """Of what a product reads."""
        return self.panels.nbytes + self.scales.nbytes


def pack(codes: Tensor, scales: Tensor) -> PackedInt8:
    """Reorder a weight for `linear`.

    Args:
        codes: [out, in] int8, on the CPU.
        scales: [out, groups], any float dtype; kept as float32.

    Raises:
        ValueError: for groups of a size that is not computed.
    """
    group_size = group_size_of(codes, scales)
    assert codes.dtype is torch.int8, codes.dtype
    return PackedInt8(
        num_outputs=codes.shape[0],
        num_inputs=codes.shape[1],
        group_size=group_size,
        panels=panels_of(words_of(codes.view(torch.uint8) ^ 0x80)),
        scales=panels_of(scales.float()),
    )


def linear(x: Tensor, packed: PackedInt8, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, W = scale * code.

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
        0,
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
        builder, args, ALL_SHAPES, lambda tile: code_tile(tile, 8, is_decoded=False)
    )


@intrinsic
def _tile_of_decoded(
    typingctx: Any, a: Any, scratch: Any, panel: Any, num_panels: Any, first: Any, rows: Any, width: Any
) -> Any:
    return TILE_SIGNATURE, lambda context, builder, sig, args: emit_tiles(
        builder, args, HIGH_SHAPES, lambda tile: code_tile(tile, 8, is_decoded=True)
    )


@intrinsic
def _decode(typingctx: Any, a: Any, scratch: Any, panel: Any) -> Any:
    return PREPARE_SIGNATURE, lambda context, builder, sig, args: decode_panel(builder, args, 8)


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
