"""Inner loops of the CPU kernels, as LLVM vector code: what numba's own vectorizer does not find.

Vectors have 16 floats whatever the machine; LLVM splits them where registers are narrower. Every sum is taken in one
fixed order that depends on its own length alone, so a result does not depend on what else is computed beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from minivllm_kernels.cpu_ir import (
    F32,
    I16,
    I32,
    I64,
    LANES,
    VECTOR,
    broadcast,
    by_chunks,
    const,
    fma,
    load_vector,
    offset,
    store_vector,
    sum_of,
    sums_of_four,
)


@intrinsic
def f32_at(typingctx: Any, address: Any) -> Any:
    """The float32 array at an address, for indexing."""
    signature = types.CPointer(types.float32)(types.int64)
    return signature, lambda context, builder, sig, args: builder.inttoptr(args[0], F32.as_pointer())


@intrinsic
def i64_at(typingctx: Any, address: Any) -> Any:
    """The int64 array at an address, for indexing."""
    signature = types.CPointer(types.int64)(types.int64)
    return signature, lambda context, builder, sig, args: builder.inttoptr(args[0], I64.as_pointer())


@intrinsic
def i32_at(typingctx: Any, address: Any) -> Any:
    """The int32 array at an address, for indexing."""
    signature = types.CPointer(types.int32)(types.int64)
    return signature, lambda context, builder, sig, args: builder.inttoptr(args[0], I32.as_pointer())


@intrinsic
def i16_at(typingctx: Any, address: Any) -> Any:
    """The int16 array at an address, for indexing."""
    signature = types.CPointer(types.int16)(types.int64)
    return signature, lambda context, builder, sig, args: builder.inttoptr(args[0], I16.as_pointer())


@intrinsic
def f64_of_bits(typingctx: Any, bits: Any) -> Any:
    """A float64 that was handed over as an int64."""
    signature = types.float64(types.int64)
    return signature, lambda context, builder, sig, args: builder.bitcast(args[0], ir.DoubleType())


@intrinsic
def _two_to_the(typingctx: Any, shifted: Any) -> Any:
    """2 ** n, of the float32 1.5 * 2 ** 23 + n: the low bits of such a number are n."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        exponent = builder.shl(builder.bitcast(args[0], I32), ir.Constant(I32, 23))
        return builder.bitcast(builder.add(exponent, ir.Constant(I32, 127 << 23)), F32)

    return types.float32(types.float32), codegen


@njit(inline="always", error_model="numpy")
def exp(x: Any) -> Any:
    """e ** x in float32, within 2 units in the last place, for x clamped to [-87, 88]; NaN stays NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2, and a polynomial for e ** r (Cephes, expf). Without branches or calls, so that
    a loop over it becomes vector code.
    """
    # In this order a NaN passes through.
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    # Adding 1.5 * 2 ** 23 rounds to a whole number.
    shifted = x * _LOG2_E + _ROUNDER
    n = shifted - _ROUNDER
    # ln 2 in two parts, so that n ln 2 is subtracted without loss.
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    return (p * (r * r) + r + _ONE) * _two_to_the(shifted)


_LOWEST, _HIGHEST, _ONE = np.float32(-87.0), np.float32(88.0), np.float32(1.0)
_LOG2_E, _ROUNDER = np.float32(1.44269504088896341), np.float32(12582912.0)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)


@intrinsic
def dot_rows(typingctx: Any, out: Any, query: Any, rows: Any, stride: Any, num_rows: Any, size: Any) -> Any:
    """out[i] += sum over d < size of query[d] * rows[i * stride + d], for i < num_rows. Strides count floats."""
    pointer = types.CPointer(types.float32)
    signature = types.void(pointer, pointer, pointer, types.int64, types.int64, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        out, query, rows, stride, num_rows, size = args
        fours = builder.and_(num_rows, const(-4))

        def emit(chunks: int, start: Any) -> None:
            q_at = offset(builder, query, start)

            def row_at(index: Any) -> Any:
                return offset(builder, rows, builder.mul(index, stride), start)

            if not chunks:
                q0 = builder.load(q_at)
                with cgutils.for_range(builder, num_rows) as loop:
                    target = offset(builder, out, loop.index)
                    product = builder.fmul(q0, builder.load(row_at(loop.index)))
                    builder.store(builder.fadd(builder.load(target), product), target)
                return
            q = [load_vector(builder, offset(builder, q_at, const(c * LANES))) for c in range(chunks)]

            def products(row: Any) -> Any:
                total = builder.fmul(q[0], load_vector(builder, row))
                for c in range(1, chunks):
                    total = fma(builder, q[c], load_vector(builder, offset(builder, row, const(c * LANES))), total)
                return total

            with cgutils.for_range_slice(builder, const(0), fours, const(4)) as (index, _):
                vectors = [products(row_at(builder.add(index, const(i)))) for i in range(4)]
                target = builder.bitcast(offset(builder, out, index), ir.VectorType(F32, 4).as_pointer())
                total = builder.fadd(builder.load(target, align=4), sums_of_four(builder, vectors))
                builder.store(total, target, align=4)
            with cgutils.for_range_slice(builder, fours, num_rows, const(1)) as (index, _):
                target = offset(builder, out, index)
                total = sum_of(builder, products(row_at(index)))
                builder.store(builder.fadd(builder.load(target), total), target)

        by_chunks(builder, size, emit)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_weighted_rows(typingctx: Any, out: Any, weights: Any, rows: Any, stride: Any, num_rows: Any, size: Any) -> Any:
    """out[d] += sum over i < num_rows of weights[i] * rows[i * stride + d], for d < size, i in order."""
    pointer = types.CPointer(types.float32)
    signature = types.void(pointer, pointer, pointer, types.int64, types.int64, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        out, weights, rows, stride, num_rows, size = args

        def emit(chunks: int, start: Any) -> None:
            targets = [offset(builder, out, start, const(c * LANES)) for c in range(max(chunks, 1))]
            load = load_vector if chunks else (lambda builder, pointer: builder.load(pointer))
            sums = [cgutils.alloca_once_value(builder, load(builder, target)) for target in targets]
            with cgutils.for_range(builder, num_rows) as loop:
                row = offset(builder, rows, builder.mul(loop.index, stride), start)
                weight = builder.load(offset(builder, weights, loop.index))
                if chunks:
                    weight = broadcast(builder, weight)
                for c, total in enumerate(sums):
                    value = load(builder, offset(builder, row, const(c * LANES)))
                    builder.store(fma(builder, weight, value, builder.load(total)), total)
            for target, total in zip(targets, sums, strict=True):
                if chunks:
                    store_vector(builder, builder.load(total), target)
                else:
                    builder.store(builder.load(total), target)

        by_chunks(builder, size, emit)
        return context.get_dummy_value()

    return signature, codegen


def _vector_exp(builder: Any, x: Any) -> Any:
    """`exp` of 16 floats."""

    def each(value: Any) -> Any:
        return ir.Constant(VECTOR, [float(value)] * LANES)

    x = builder.select(builder.fcmp_ordered("<", x, each(_LOWEST)), each(_LOWEST), x)
    x = builder.select(builder.fcmp_ordered(">", x, each(_HIGHEST)), each(_HIGHEST), x)
    shifted = fma(builder, x, each(_LOG2_E), each(_ROUNDER))
    n = builder.fsub(shifted, each(_ROUNDER))
    r = fma(builder, n, each(-_LN2_LOW), fma(builder, n, each(-_LN2_HIGH), x))
    p = each(_P0)
    for coefficient in (_P1, _P2, _P3, _P4, _P5):
        p = fma(builder, p, r, each(coefficient))
    p = builder.fadd(fma(builder, p, builder.fmul(r, r), r), each(_ONE))
    ints = ir.VectorType(I32, LANES)
    exponent = builder.shl(builder.bitcast(shifted, ints), ir.Constant(ints, [23] * LANES))
    return builder.fmul(p, builder.bitcast(builder.add(exponent, ir.Constant(ints, [127 << 23] * LANES)), VECTOR))


@intrinsic
def exp_scores(typingctx: Any, scores: Any, size: Any, scale: Any) -> Any:
    """scores[i] = exp(scale * (scores[i] - max(scores))), for i < size, a multiple of 16; returns their sum.

    Padding of -inf adds less than the sum's rounding. A NaN spoils everything, as it should.
    """
    signature = types.float32(types.CPointer(types.float32), types.int64, types.float32)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scores, size, scale = args
        of_two = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(VECTOR, [VECTOR, VECTOR]), f"llvm.maxnum.v{LANES}f32"
        )
        of_all = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(F32, [VECTOR]), f"llvm.vector.reduce.fmax.v{LANES}f32"
        )
        largest = cgutils.alloca_once_value(builder, load_vector(builder, scores))
        with cgutils.for_range_slice(builder, const(LANES), size, const(LANES)) as (start, _):
            value = load_vector(builder, builder.gep(scores, [start]))
            builder.store(builder.call(of_two, [builder.load(largest), value]), largest)
        peak = broadcast(builder, builder.call(of_all, [builder.load(largest)]))
        scales = broadcast(builder, scale)
        total = cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0.0] * LANES))
        with cgutils.for_range_slice(builder, const(0), size, const(LANES)) as (start, _):
            at = builder.gep(scores, [start])
            value = _vector_exp(builder, builder.fmul(builder.fsub(load_vector(builder, at), peak), scales))
            store_vector(builder, value, at)
            builder.store(builder.fadd(builder.load(total), value), total)
        return sum_of(builder, builder.load(total))

    return signature, codegen


@intrinsic
def sum_of_squares(typingctx: Any, x: Any, size: Any) -> Any:
    """Sum over d < size of x[d] ** 2."""
    signature = types.float32(types.CPointer(types.float32), types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, size = args
        total = cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0.0] * LANES))
        whole = builder.mul(builder.sdiv(size, const(LANES)), const(LANES))
        with cgutils.for_range_slice(builder, const(0), whole, const(LANES)) as (start, _):
            value = load_vector(builder, builder.gep(x, [start]))
            builder.store(fma(builder, value, value, builder.load(total)), total)
        result = cgutils.alloca_once_value(builder, sum_of(builder, builder.load(total)))
        with cgutils.for_range_slice(builder, whole, size, const(1)) as (start, _):
            value = builder.load(builder.gep(x, [start]))
            builder.store(fma(builder, value, value, builder.load(result)), result)
        return builder.load(result)

    return signature, codegen


@intrinsic
def largest(typingctx: Any, x: Any, size: Any) -> Any:
    """Largest x[i], i < size; NaN where there is one."""
    signature = types.float32(types.CPointer(types.float32), types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, size = args
        of_all = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(F32, [VECTOR]), f"llvm.vector.reduce.fmax.v{LANES}f32"
        )
        flags = ir.VectorType(ir.IntType(1), LANES)
        any_of = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(1), [flags]), f"llvm.vector.reduce.or.v{LANES}i1"
        )
        lowest = ir.Constant(VECTOR, [float("-inf")] * LANES)
        best = cgutils.alloca_once_value(builder, lowest)
        nans = cgutils.alloca_once_value(builder, ir.Constant(flags, [False] * LANES))
        whole = builder.mul(builder.sdiv(size, const(LANES)), const(LANES))
        with cgutils.for_range_slice(builder, const(0), whole, const(LANES)) as (start, _):
            value = load_vector(builder, builder.gep(x, [start]))
            is_larger = builder.fcmp_ordered(">", value, builder.load(best))
            builder.store(builder.select(is_larger, value, builder.load(best)), best)
            builder.store(builder.or_(builder.load(nans), builder.fcmp_unordered("uno", value, value)), nans)
        result = cgutils.alloca_once_value(builder, builder.call(of_all, [builder.load(best)]))
        is_nan = cgutils.alloca_once_value(builder, builder.call(any_of, [builder.load(nans)]))
        with cgutils.for_range_slice(builder, whole, size, const(1)) as (start, _):
            value = builder.load(builder.gep(x, [start]))
            is_larger = builder.fcmp_ordered(">", value, builder.load(result))
            builder.store(builder.select(is_larger, value, builder.load(result)), result)
            builder.store(builder.or_(builder.load(is_nan), builder.fcmp_unordered("uno", value, value)), is_nan)
        return builder.select(builder.load(is_nan), ir.Constant(F32, float("nan")), builder.load(result))

    return signature, codegen


@njit(inline="always", error_model="numpy")
def find(x: Any, size: Any, value: Any) -> Any:
    """The first i < size with x[i] == value, or 0."""
    start = 0
    # 64 at a time, which is vector code, and then one by one.
    while start + 64 <= size:
        hits = 0
        for i in range(start, start + 64):
            hits += x[i] == value
        if hits > 0:
            break
        start += 64
    for i in range(start, size):
        if x[i] == value:
            return i
    return 0
