"""How a CPU does it with a weight in bfloat16 or float16 and all else in float32: half the bytes of `linear`.

A result is bitwise that of `linear` with the weight widened to float32. bfloat16 lies in panels by pairs of inputs, so
that one operation, a shift or a mask, widens 16 weights. See `cpu_tiles`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numba.extending import intrinsic
from torch import Tensor

from minivllm_kernels.cpu_panels import bias_address, panels_of, words_of
from minivllm_kernels.cpu_threads import TILE_SIGNATURE, address, cpu_kernel, each_tile, thread_num
from minivllm_kernels.cpu_tiles import (
    ALL_SHAPES,
    MAX_PAIR_ROWS,
    MAX_ROWS,
    NUM_ARGUMENTS,
    NUM_OUTPUTS,
    NUM_ROWS,
    PANEL_WIDTH,
    emit_tiles,
    float_tile,
)
from minivllm_kernels.cpu_vectors import i16_at, i64_at


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedHalf:
    """A weight as `linear` reads it. Made by `pack`.

    Args:
        panels: [P, in / s, 32, s], s = 1 for float16 and 2 for bfloat16, whose odd last input has zeros beside it.
    """

    num_outputs: int
    num_inputs: int
    panels: Tensor

    @property
    def nbytes(self) -> int:
        """Of what a product reads."""
        return self.panels.nbytes


def pack(weight: Tensor) -> PackedHalf:
    """Reorder a weight for `linear`: [out, in] bfloat16 or float16, on the CPU."""
    num_outputs, num_inputs = weight.shape
    if weight.dtype is torch.bfloat16:
        panels = panels_of(words_of(weight)).view(torch.bfloat16).unflatten(2, (PANEL_WIDTH, 2))
    else:
        assert weight.dtype is torch.float16, weight.dtype
        panels = panels_of(weight)[..., None]
    return PackedHalf(num_outputs=num_outputs, num_inputs=num_inputs, panels=panels)


def unpack_rows(packed: PackedHalf, rows: Tensor) -> Tensor:
    """Rows of the weight that was packed: [N] int64, contiguous -> [N, in] float32."""
    out = torch.empty(len(rows), packed.num_inputs, dtype=packed.panels.dtype)
    _, steps, _, step = packed.panels.shape
    _unpack_rows(packed.panels.data_ptr(), rows.data_ptr(), out.data_ptr(), len(rows), packed.num_inputs, steps, step)
    return out.float()


def linear(x: Tensor, packed: PackedHalf, bias: Tensor | None = None) -> Tensor:
    """x W^T + b.

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
    kernel = _linear_bfloat16 if packed.panels.dtype is torch.bfloat16 else _linear_float16
    kernel(
        address(x),
        packed.panels.data_ptr(),
        0,
        0,
        bias_address(bias, packed.num_outputs),
        address(out),
        0,
        num_rows,
        num_inputs,
        packed.num_outputs,
        num_inputs,
    )
    return out


@cpu_kernel(7)
def _unpack_rows(a: Any) -> None:
    panels, rows, out, num_rows, size, steps, step, num_threads = (
        i16_at(a[0]), i64_at(a[1]), i16_at(a[2]), a[3], a[4], a[5], a[6], a[7],
    )  # fmt: skip
    thread = thread_num()
    for i in range(num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads):
        panel, column = rows[i] // PANEL_WIDTH, rows[i] % PANEL_WIDTH
        for k in range(size):
            out[i * size + k] = panels[((panel * steps + k // step) * PANEL_WIDTH + column) * step + k % step]


@intrinsic
def _bfloat16_tile(
    typingctx: Any, a: Any, scratch: Any, panel: Any, num_panels: Any, first: Any, rows: Any, width: Any
) -> Any:
    return TILE_SIGNATURE, lambda context, builder, sig, args: emit_tiles(
        builder, args, ALL_SHAPES, lambda tile: float_tile(tile, "bfloat16")
    )


@intrinsic
def _float16_tile(
    typingctx: Any, a: Any, scratch: Any, panel: Any, num_panels: Any, first: Any, rows: Any, width: Any
) -> Any:
    return TILE_SIGNATURE, lambda context, builder, sig, args: emit_tiles(
        builder, args, ALL_SHAPES, lambda tile: float_tile(tile, "float16")
    )


@cpu_kernel(NUM_ARGUMENTS)
def _linear_bfloat16(a: Any) -> None:
    each_tile(_bfloat16_tile, a, 0, a[NUM_ROWS], a[NUM_OUTPUTS], a[NUM_ARGUMENTS], PANEL_WIDTH, MAX_ROWS, MAX_PAIR_ROWS)


@cpu_kernel(NUM_ARGUMENTS)
def _linear_float16(a: Any) -> None:
    each_tile(_float16_tile, a, 0, a[NUM_ROWS], a[NUM_OUTPUTS], a[NUM_ARGUMENTS], PANEL_WIDTH, MAX_ROWS, MAX_PAIR_ROWS)
