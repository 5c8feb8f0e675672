"""Building blocks of the CPU kernels' inner loops: pieces of LLVM code that `cpu_vectors` and the kernels put together.

Vectors have 16 floats whatever the machine; LLVM splits them where registers are narrower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 16
F32 = ir.FloatType()
I32, I64 = ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(F32, LANES)


def const(value: int) -> ir.Constant:
    """An int64."""
    return ir.Constant(I64, value)


def broadcast(builder: Any, scalar: Any) -> Any:
    """A vector of one value."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def load_vector(builder: Any, pointer: Any) -> Any:
    """16 floats from anywhere."""
    return builder.load(builder.bitcast(pointer, VECTOR.as_pointer()), align=4)


def store_vector(builder: Any, vector: Any, pointer: Any) -> None:
    """16 floats to anywhere."""
    builder.store(vector, builder.bitcast(pointer, VECTOR.as_pointer()), align=4)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once; vectors or scalars."""
    kind = a.type
    name = "llvm.fma.f32" if kind == F32 else f"llvm.fma.v{LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


def shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """These lanes of two vectors, those of b counted from a's end."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def sum_of(builder: Any, vector: Any) -> Any:
    """The sum of a vector's floats: its halves are added until one is left."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = list(range(width)), list(range(width, 2 * width))
        vector = builder.fadd(shuffle(builder, vector, vector, low), shuffle(builder, vector, vector, high))
    return builder.extract_element(vector, ir.Constant(I32, 0))


def sums_of_four(builder: Any, vectors: list[Any]) -> Any:
    """`sum_of` of four vectors in one vector of 4, the same additions in the same order, bit by bit."""

    def halved(a: Any, b: Any, width: int) -> Any:
        # Groups of 2 * width lanes become groups of width lanes, those of a before those of b.
        lanes = [i for i in range(2 * LANES) if i % (2 * width) < width]
        low = shuffle(builder, a, b, lanes)
        return builder.fadd(low, shuffle(builder, a, b, [i + width for i in lanes]))

    first, second = halved(vectors[0], vectors[1], 8), halved(vectors[2], vectors[3], 8)
    quads = halved(first, second, 4)
    # Lanes 0 to 7 now hold pairs, then single sums; the other lanes repeat them.
    pairs = halved(quads, quads, 2)
    singles = halved(pairs, pairs, 1)
    return shuffle(builder, singles, singles, [0, 1, 2, 3])


def offset(builder: Any, pointer: Any, *steps: Any) -> Any:
    """A pointer moved by these numbers of elements."""
    for step in steps:
        pointer = builder.gep(pointer, [step])
    return pointer


def by_chunks(builder: Any, size: Any, emit: Callable[[int, Any], None]) -> None:
    """Emit code for rows of `size` floats: whole rows in registers for the usual sizes (`emit(chunks, 0)`), else 16
    floats at a time (`emit(1, start)`), then float by float (`emit(0, start)`)."""
    done = builder.append_basic_block("done")
    other = builder.append_basic_block("other")
    switch = builder.switch(size, other)
    for chunks in (2, 4, 8):
        block = builder.append_basic_block(f"chunks{chunks}")
        switch.add_case(const(chunks * LANES), block)
        with builder.goto_block(block):
            emit(chunks, const(0))
            builder.branch(done)
    builder.position_at_end(other)
    whole = builder.mul(builder.sdiv(size, const(LANES)), const(LANES))
    with cgutils.for_range_slice(builder, const(0), whole, const(LANES)) as (start, _):
        emit(1, start)
    with cgutils.for_range_slice(builder, whole, size, const(1)) as (start, _):
        emit(0, start)
    builder.branch(done)
    builder.position_at_end(done)
