"""How a CPU does it in float32: the weight in panels, a tile of outputs in registers.

A panel is 32 outputs wide and as long as the input, stored in the order in which it is read: `panels[p, k, j]` is
`weight[32 p + j, k]`. A tile of up to 8 rows by 32 outputs stays in vector registers while one panel streams past, so
a weight is read once for every 8 rows and nothing is repacked at run time. Threads share the panels.

An output is one chain of fused multiply-adds over k, in order, whatever the number of rows and of threads: a row's
result is bitwise the same in any batch.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from minivllm_kernels.cpu_ir import (
    F32,
    LANES,
    VECTOR,
    broadcast,
    const,
    fma,
    load_vector,
    store_vector,
)
from minivllm_kernels.cpu_threads import address, cpu_kernel, thread_num
from minivllm_kernels.cpu_vectors import f32_at, i64_at

PANEL_WIDTH = 2 * LANES
_COPIED_FLOATS = 2**20
# 32 vector registers of 16 floats hold 8 x 2 sums; 16 of 8 floats hold 2 x 4 and what they are made of.
_MAX_ROWS = 8 if llvm.get_host_cpu_features().get("avx512f") else 2


def pack_panels(weight: Tensor, *, overwrite: bool = False) -> Tensor:
    """Reorder a weight for `linear`.

    Args:
        weight: [out, in] float32, on the CPU.
        overwrite: the caller gives the weight away, and the panels may take its memory: where it has whole panels they
            do, so that a large head is never there twice.

    Returns:
        [ceil(out / 32), in, 32], zeros where there is no output.
    """
    num_outputs, num_inputs = weight.shape
    num_whole, num_rest = divmod(num_outputs, PANEL_WIDTH)
    in_place = overwrite and not num_rest and weight.is_contiguous()
    shape = (num_whole + (num_rest > 0), num_inputs, PANEL_WIDTH)
    panels = weight.view(shape) if in_place else weight.new_empty(shape)
    # A panel takes the place of its own rows. Some at once, as each step has a cost of its own.
    step = max(1, _COPIED_FLOATS // (PANEL_WIDTH * max(1, num_inputs)))
    for first in range(0, num_whole, step):
        end = min(first + step, num_whole)
        rows = weight[first * PANEL_WIDTH : end * PANEL_WIDTH]
        turned = rows.unflatten(0, (end - first, PANEL_WIDTH)).transpose(1, 2)
        panels[first:end] = turned.contiguous() if in_place else turned
    if num_rest:
        panels[-1] = 0
        panels[-1, :, :num_rest] = weight[num_whole * PANEL_WIDTH :].t()
    return panels


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
    _linear(address(x), address(panels), address(bias), address(out), num_rows, num_inputs, num_outputs)
    return out


@intrinsic
def _tile(
    typingctx: Any, num_rows: Any, x: Any, panel: Any, bias: Any, out: Any, size: Any, stride: Any, width: Any
) -> Any:
    """out[m, n] = bias[n] + sum over k < size of x[m, k] * panel[k, n], for m < num_rows <= _MAX_ROWS and n < width.

    Rows of x are `size` floats apart, rows of out `stride`.
    """
    pointer = types.CPointer(types.float32)
    signature = types.void(types.int64, pointer, pointer, pointer, pointer, types.int64, types.int64, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        num_rows, x, panel, bias, out, size, stride, width = args
        is_whole = builder.icmp_signed("==", width, const(PANEL_WIDTH))
        spill = cgutils.alloca_once(builder, F32, const(PANEL_WIDTH))
        done = builder.append_basic_block("done")
        switch = builder.switch(num_rows, done)
        for count in range(1, _MAX_ROWS + 1):
            block = builder.append_basic_block(f"rows{count}")
            switch.add_case(const(count), block)
            with builder.goto_block(block):
                emit(builder, count, x, panel, bias, out, size, stride, width, is_whole, spill)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    def emit(
        builder: Any, count: int, x: Any, panel: Any, bias: Any, out: Any, size: Any, stride: Any, width: Any,
        is_whole: Any, spill: Any,
    ) -> None:  # fmt: skip
        rows = [builder.gep(x, [builder.mul(const(m), size)]) for m in range(count)]
        starts = [load_vector(builder, builder.gep(bias, [const(half * LANES)])) for half in range(2)]
        sums = [[cgutils.alloca_once_value(builder, start) for start in starts] for _ in range(count)]
        with cgutils.for_range(builder, size) as loop:
            weights = builder.gep(panel, [builder.mul(loop.index, const(PANEL_WIDTH))])
            halves = [load_vector(builder, builder.gep(weights, [const(half * LANES)])) for half in range(2)]
            for row, row_sums in zip(rows, sums, strict=True):
                value = broadcast(builder, builder.load(builder.gep(row, [loop.index])))
                for total, half in zip(row_sums, halves, strict=True):
                    builder.store(fma(builder, value, half, builder.load(total)), total)
        for m, row_sums in enumerate(sums):
            target = builder.gep(out, [builder.mul(const(m), stride)])
            with builder.if_else(is_whole) as (whole, partial):
                with whole:
                    for half, total in enumerate(row_sums):
                        store_vector(builder, builder.load(total), builder.gep(target, [const(half * LANES)]))
                with partial:
                    for half, total in enumerate(row_sums):
                        store_vector(builder, builder.load(total), builder.gep(spill, [const(half * LANES)]))
                    with cgutils.for_range(builder, width) as loop:
                        value = builder.load(builder.gep(spill, [loop.index]))
                        builder.store(value, builder.gep(target, [loop.index]))

    assert VECTOR.count == LANES
    return signature, codegen


@cpu_kernel(5)
def _unpack_rows(a: Any) -> None:
    panels, rows, num_rows, size, num_threads = a[0], i64_at(a[1]), a[3], a[4], a[5]
    thread = thread_num()
    for i in range(num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads):
        panel, column = rows[i] // PANEL_WIDTH, rows[i] % PANEL_WIDTH
        source, out = f32_at(panels + 4 * (panel * size * PANEL_WIDTH + column)), f32_at(a[2] + 4 * i * size)
        for k in range(size):
            out[k] = source[k * PANEL_WIDTH]


@cpu_kernel(7)
def _linear(a: Any) -> None:
    x, panels, bias, out, num_rows, num_inputs, num_outputs, num_threads = (
        a[0],
        a[1],
        a[2],
        a[3],
        a[4],
        a[5],
        a[6],
        a[7],
    )
    num_panels = (num_outputs + PANEL_WIDTH - 1) // PANEL_WIDTH
    num_tiles = (num_rows + _MAX_ROWS - 1) // _MAX_ROWS
    thread = thread_num()
    for panel in range(num_panels * thread // num_threads, num_panels * (thread + 1) // num_threads):
        column = panel * PANEL_WIDTH
        width = min(num_outputs - column, PANEL_WIDTH)
        for tile in range(num_tiles):
            # Tiles of equal height, rather than a low one at the end.
            first, end = num_rows * tile // num_tiles, num_rows * (tile + 1) // num_tiles
            _tile(
                end - first,
                f32_at(x + 4 * first * num_inputs),
                f32_at(panels + 4 * column * num_inputs),
                f32_at(bias + 4 * column),
                f32_at(out + 4 * (first * num_outputs + column)),
                num_inputs,
                num_outputs,
                width,
            )
