"""How a CPU does it: rows of activations become bytes on entry, products are summed in 32-bit integers, exactly.

Codes of activations are kept 128 too large, 0..255: the instruction for four products and their sum (vpdpbusd) takes
unsigned times signed bytes. What the 128 add up to with a row of weights is known when the weight is packed, and sums
start from its negative. Where the processor has no such instruction, pairs of 16-bit products do the same sums.

See `cpu_tiles` for panels and tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from minivllm_kernels.cpu_ir import (
    F32,
    I8,
    I16,
    I32,
    INTS,
    LANES,
    VECTOR,
    at,
    broadcast,
    const,
    count_to,
    floats,
    fma,
    has_feature,
    ints,
    load_vector,
    shuffle,
    variable,
)
from minivllm_kernels.cpu_panels import bias_address, panels_of, words_of
from minivllm_kernels.cpu_threads import (
    PREPARE_SIGNATURE,
    TILE_SIGNATURE,
    address,
    barrier,
    cpu_kernel,
    each_tile,
    num_threads,
    thread_num,
)
from minivllm_kernels.cpu_tiles import (
    ALL_SHAPES,
    MAX_PAIR_ROWS,
    MAX_ROWS,
    NUM_ARGUMENTS,
    NUM_INPUTS,
    NUM_OUTPUTS,
    NUM_ROWS,
    PANEL_WIDTH,
    PANELS,
    SCALES,
    SCRATCH,
    ZEROS,
    Tile,
    X,
    emit_tiles,
)

# Up to this many rows every thread rounds all of them for itself: cheaper than to wait for each other.
_MAX_OWN_ROWS = 2
# Sums of products up to 127 * 128 stay in 32 bits.
_MAX_INPUTS = 2**17
# Where sums start lies where other weights have zeros.
_STARTS = ZEROS


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedDynamicInt8:
    """A weight as `linear` reads it. Made by `pack`.

    Args:
        panels: [P, ceil(in / 4), 32] int32, 4 codes a word.
        scales: [P * 32] float32.
        starts: [P * 32] int32, what sums start from.
    """

    num_outputs: int
    num_inputs: int
    panels: Tensor
    scales: Tensor
    starts: Tensor

    @property
    def nbytes(self) -> int:
        """Of what a product reads."""
        return self.panels.nbytes + self.scales.nbytes + self.starts.nbytes


def pack(codes: Tensor, scales: Tensor) -> PackedDynamicInt8:
    """Reorder a weight for `linear`.

    Args:
        codes: [out, in] int8, on the CPU.
        scales: [out], any float dtype; kept as float32.

    Raises:
        ValueError: for more inputs than 32-bit sums are sure to hold.
    """
    num_outputs, num_inputs = codes.shape
    assert codes.dtype is torch.int8 and scales.shape == (num_outputs,), f"{codes.dtype}, scales {scales.shape}"
    if num_inputs > _MAX_INPUTS:
        raise ValueError(f"{num_inputs} inputs: 8-bit products are summed exactly up to {_MAX_INPUTS}")
    return PackedDynamicInt8(
        num_outputs=num_outputs,
        num_inputs=num_inputs,
        panels=panels_of(words_of(codes)),
        scales=panels_of(scales.float()[:, None]).flatten(),
        starts=panels_of(codes.sum(dim=1, dtype=torch.int32, keepdim=True) * -128).flatten(),
    )


def linear(x: Tensor, packed: PackedDynamicInt8, bias: Tensor | None = None) -> Tensor:
    """x W^T + b with x rounded by row, as the reference does it, to the bit.

    No output of a row with a NaN or an infinity is finite. A row whose largest magnitude is so small, under 3.8e-37,
    that 127 over it is infinite counts as zeros.

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
    copies = num_threads() if num_rows <= _MAX_OWN_ROWS else 1
    scratch = torch.empty(copies * num_rows * (1 + packed.panels.shape[1]), dtype=torch.int32)
    _linear(
        address(x),
        packed.panels.data_ptr(),
        packed.scales.data_ptr(),
        packed.starts.data_ptr(),
        bias_address(bias, packed.num_outputs),
        address(out),
        scratch.data_ptr(),
        num_rows,
        num_inputs,
        packed.num_outputs,
        num_inputs,
    )
    return out


@intrinsic
def _quantize_row(typingctx: Any, a: Any, scratch: Any, row: Any) -> Any:
    """A row of x as codes + 128, and its scale. Scratch holds the scales of all rows, then codes, a row in words."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        arguments, scratch, row = args
        tile = Tile(builder, arguments, scratch, const(0), row, const(0), 1, 1)
        size, num_rows = tile.argument(NUM_INPUTS), tile.argument(NUM_ROWS)
        (x,) = tile.rows(X, F32, size)
        scales = at(builder, scratch, F32)
        words = builder.sdiv(builder.add(size, const(3)), const(4))
        codes = builder.bitcast(builder.gep(scales, [builder.add(num_rows, builder.mul(row, words))]), I8.as_pointer())
        whole, rest = builder.sdiv(size, const(LANES)), builder.srem(size, const(LANES))
        last = builder.mul(whole, const(LANES))

        # Of floats without a sign the bits are in the order of the values, NaN above all.
        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.icmp_unsigned(">", a, b), a, b)

        def magnitude(bits: Any, kind: Any) -> Any:
            return builder.and_(builder.bitcast(bits, kind), ints(0x7FFFFFFF) if kind is INTS else _int(0x7FFFFFFF))

        most = variable(builder, ints(0))
        with count_to(builder, whole) as i:
            value = load_vector(builder, builder.gep(x, [builder.mul(i, const(LANES))]))
            builder.store(larger(magnitude(value, INTS), builder.load(most)), most)
        of_all = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(I32, [INTS]), f"llvm.vector.reduce.umax.v{LANES}i32"
        )
        largest = variable(builder, builder.call(of_all, [builder.load(most)]))
        with count_to(builder, rest) as i:
            value = builder.load(builder.gep(x, [builder.add(last, i)]))
            builder.store(larger(magnitude(value, I32), builder.load(largest)), largest)

        peak = builder.bitcast(builder.load(largest), F32)
        # Of a row with a NaN or an infinity the scale is one, and whatever its codes become, so are its outputs.
        builder.store(builder.fdiv(peak, _float(127.0)), builder.gep(scales, [row]))
        # The reference's `127 / largest` is PyTorch's: the reciprocal, rounded, times 127.
        inverse = builder.fmul(builder.fdiv(_float(1.0), peak), _float(127.0))
        is_usable = builder.fcmp_ordered("<", inverse, _float(float("inf")))
        inverse = builder.select(is_usable, inverse, _float(0.0))

        # The sum with 1.5 * 2 ** 23 + 128 is rounded to a whole number, halves to even, whose low byte is the code.
        rounder = 1.5 * 2**23 + 128
        inverses = broadcast(builder, inverse)
        with count_to(builder, whole) as i:
            start = builder.mul(i, const(LANES))
            value = builder.fmul(load_vector(builder, builder.gep(x, [start])), inverses)
            rounded = builder.bitcast(builder.fadd(value, floats(rounder)), INTS)
            vector = ir.VectorType(I8, LANES)
            target = builder.bitcast(builder.gep(codes, [start]), vector.as_pointer())
            builder.store(builder.trunc(rounded, vector), target, align=1)
        with count_to(builder, rest) as i:
            index = builder.add(last, i)
            value = builder.fmul(builder.load(builder.gep(x, [index])), inverse)
            rounded = builder.bitcast(builder.fadd(value, _float(rounder)), I32)
            builder.store(builder.trunc(rounded, I8), builder.gep(codes, [index]))
        return context.get_dummy_value()

    return PREPARE_SIGNATURE, codegen


def _int(value: int) -> Any:
    return ir.Constant(I32, value)


def _float(value: float) -> Any:
    return ir.Constant(F32, value)


def _add_dot_products(builder: Any, total: Any, word: Any, weights: Any) -> Any:
    """total + the sums of four products: of a word's unsigned bytes with the signed bytes of each of 16 words."""

    def call(total: Any, x: Any, weights: Any, *, bits: int) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(total.type, [total.type] * 3), f"llvm.x86.avx512.vpdpbusd.{bits}"
        )
        return builder.call(function, [total, x, weights])

    if has_feature("avx512vnni"):
        return call(total, broadcast(builder, word), weights, bits=512)
    if has_feature("avxvnni"):
        operands = (total, broadcast(builder, word), weights)
        low, high = list(range(LANES // 2)), list(range(LANES // 2, LANES))
        first, second = (
            call(*[shuffle(builder, operand, operand, lanes) for operand in operands], bits=256)
            for lanes in (low, high)
        )
        return shuffle(builder, first, second, low + high)
    # The bytes 0 and 2, then 1 and 3, of every word in 16 bits each. LLVM knows the sums of two products (vpmaddwd).
    shorts, wide = ir.VectorType(I16, 2 * LANES), ir.VectorType(I32, 2 * LANES)
    eight = ir.Constant(shorts, [8] * 2 * LANES)
    signed = builder.bitcast(weights, shorts)
    even = builder.ashr(builder.shl(signed, eight), eight)
    odd = builder.ashr(signed, eight)
    low_bytes = _int(0x00FF00FF)
    for x, w in ((word, even), (builder.lshr(word, _int(8)), odd)):
        x = builder.bitcast(broadcast(builder, builder.and_(x, low_bytes)), shorts)
        products = builder.mul(builder.sext(x, wide), builder.sext(w, wide))
        for first in (0, 1):
            total = builder.add(total, shuffle(builder, products, products, list(range(first, 2 * LANES, 2))))
    return total


def _integer_tile(tile: Tile) -> None:
    builder, size, num_rows = tile.builder, tile.argument(NUM_INPUTS), tile.argument(NUM_ROWS)
    words = builder.sdiv(builder.add(size, const(3)), const(4))
    panels = tile.panels(PANELS, I32, builder.mul(words, const(PANEL_WIDTH)))
    x_scales = at(builder, tile.scratch, F32)
    x_codes = builder.bitcast(builder.gep(x_scales, [num_rows]), I32.as_pointer())
    places = [builder.add(tile.first_row, const(m)) for m in range(tile.num_rows)]
    rows = [builder.gep(x_codes, [builder.mul(place, words)]) for place in places]
    sums = tile.sums(tile.halves(tile.panels(_STARTS, I32, const(PANEL_WIDTH)), const(0), I32))
    with count_to(builder, words) as i:
        weights = tile.halves(panels, i, I32)
        for row, row_sums in zip(rows, sums, strict=True):
            word = builder.load(builder.gep(row, [i]))
            for total, weight in zip(row_sums, weights, strict=True):
                builder.store(_add_dot_products(builder, builder.load(total), word, weight), total)
    scales = tile.halves(tile.panels(SCALES, F32, const(PANEL_WIDTH)), const(0), F32)
    bias = tile.bias()
    results = []
    for place, row_sums in zip(places, sums, strict=True):
        x_scale = broadcast(builder, builder.load(builder.gep(x_scales, [place])))
        results.append(
            [
                fma(builder, builder.sitofp(builder.load(total), VECTOR), builder.fmul(x_scale, scale), start)
                for total, scale, start in zip(row_sums, scales, bias, strict=True)
            ]
        )
    tile.write(results)


@intrinsic
def _tile(typingctx: Any, a: Any, scratch: Any, panel: Any, num_panels: Any, first: Any, rows: Any, width: Any) -> Any:
    return TILE_SIGNATURE, lambda context, builder, sig, args: emit_tiles(builder, args, ALL_SHAPES, _integer_tile)


@cpu_kernel(NUM_ARGUMENTS)
def _linear(a: Any) -> None:
    num_rows, num_outputs, num_threads = a[NUM_ROWS], a[NUM_OUTPUTS], a[NUM_ARGUMENTS]
    scratch, thread = a[SCRATCH], thread_num()
    if num_rows <= _MAX_OWN_ROWS:
        scratch += 4 * thread * num_rows * (1 + (a[NUM_INPUTS] + 3) // 4)
        for row in range(num_rows):
            _quantize_row(a, scratch, row)
    else:
        for row in range(num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads):
            _quantize_row(a, scratch, row)
        barrier()
    each_tile(_tile, a, scratch, num_rows, num_outputs, num_threads, PANEL_WIDTH, MAX_ROWS, MAX_PAIR_ROWS)
