"""How a CPU does it in float32: the weight in panels, a tile of outputs in registers.

A panel is 32 outputs wide and as long as the input, stored in the order in which it is read: `panels[p, k, j]` is
`weight[32 p + j, k]`. Nothing is repacked at run time. Threads share the panels.

An output is one chain of fused multiply-adds over k, in order, whatever the number of rows and of threads: a row's
result is bitwise the same in any batch. See `cpu_tiles`.
"""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic
from torch import Tensor

from minivllm_kernels.cpu_panels import panels_of
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
from minivllm_kernels.cpu_vectors import f32_at, i64_at


def pack_panels(weight: Tensor, *, overwrite: bool = False) -> Tensor:
    """Reorder a weight for `linear`.

    Args:
        weight: [out, in] float32, on the CPU.
        overwrite: the caller gives the weight away, and the panels may take its memory: where it has whole panels they
            do, so that a large head is never there twice.

    Returns:
        [ceil(out / 32), in, 32], zeros where there is no output.
    """
    return panels_of(weight, overwrite=overwrite)


def unpack_rows(panels: Tensor, rows: Tensor) -> Tensor:
    """Rows of the weight that was packed: [N] int64, contiguous -> [N, in]."""
    out = panels.new_empty(len(rows), panels.shape[1])
    _unpack_rows(address(panels), rows.data_ptr(), address(out), len(rows), panels.shape[1])
    return out


def linear(x: Tensor, panels: Tensor, bias: Tensor, num_outputs: int) -> Tensor:
    """x W^T + b.

    Args:
        x: [N, in] float32 contiguous, on the CPU.
        panels: [P, in, 32] of `pack_panels`.
        bias: [P * 32] float32, zeros where there is none.
        num_outputs: columns of the result, in (32 (P - 1), 32 P].

    Returns:
        [N, num_outputs].
    """
    num_rows, num_inputs = x.shape
    out = x.new_empty(num_rows, num_outputs)
    _linear(
        address(x), address(panels), 0, 0, address(bias), address(out), 0, num_rows, num_inputs, num_outputs, num_inputs
    )
    return out


@cpu_kernel(5)
def _unpack_rows(a: Any) -> None:
    panels, rows, num_rows, size, num_threads = a[0], i64_at(a[1]), a[3], a[4], a[5]
    thread = thread_num()
    for i in range(num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads):
        panel, column = rows[i] // PANEL_WIDTH, rows[i] % PANEL_WIDTH
        source, out = f32_at(panels + 4 * (panel * size * PANEL_WIDTH + column)), f32_at(a[2] + 4 * i * size)
        for k in range(size):
            out[k] = source[k * PANEL_WIDTH]


@intrinsic
def _tile(typingctx: Any, a: Any, scratch: Any, panel: Any, num_panels: Any, first: Any, rows: Any, width: Any) -> Any:
    return TILE_SIGNATURE, lambda context, builder, sig, args: emit_tiles(
        builder, args, ALL_SHAPES, lambda tile: float_tile(tile, "float32")
    )


@cpu_kernel(NUM_ARGUMENTS)
def _linear(a: Any) -> None:
    each_tile(_tile, a, 0, a[NUM_ROWS], a[NUM_OUTPUTS], a[NUM_ARGUMENTS], PANEL_WIDTH, MAX_ROWS, MAX_PAIR_ROWS)
