"""How a CPU does it: codes in panels, 4 inputs of an output in a word, made floats in registers.

See `cpu_tiles` for panels, tiles, the order of a sum, and how codes become floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from minivllm_kernels.cpu_panels import bias_address, group_size_of, panels_of, words_of
from minivllm_kernels.cpu_threads import address, cpu_kernel, each_tile
from minivllm_kernels.cpu_tiles import (
    MAX_PAIR_ROWS,
    MAX_ROWS,
    NUM_ARGUMENTS,
    NUM_OUTPUTS,
    NUM_ROWS,
    PANEL_WIDTH,
    code_tile,
    emit_tiles,
)


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
    _linear(
        address(x),
        packed.panels.data_ptr(),
        packed.scales.data_ptr(),
        0,
        bias_address(bias, packed.num_outputs),
        address(out),
        num_rows,
        num_inputs,
        packed.num_outputs,
        packed.group_size,
    )
    return out


@intrinsic
def _tile(typingctx: Any, a: Any, panel: Any, num_panels: Any, first_row: Any, num_rows: Any, width: Any) -> Any:
    signature = types.void(types.CPointer(types.int64), *[types.int64] * 5)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit_tiles(builder, args, lambda tile: code_tile(tile, 8))
        return context.get_dummy_value()

    return signature, codegen


@cpu_kernel(NUM_ARGUMENTS)
def _linear(a: Any) -> None:
    each_tile(_tile, a, a[NUM_ROWS], a[NUM_OUTPUTS], a[NUM_ARGUMENTS], PANEL_WIDTH, MAX_ROWS, MAX_PAIR_ROWS)
