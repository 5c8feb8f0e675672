"""Building blocks of the CPU kernels' inner loops: pieces of LLVM code that `cpu_vectors`, `cpu_tiles` and the kernels
put together.

Vectors have 16 floats whatever the machine; LLVM splits them where registers are narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features

LANES = 16
F16, F32 = ir.HalfType(), ir.FloatType()
I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(F32, LANES)
INTS = ir.VectorType(I32, LANES)


def has_feature(name: str) -> bool:
    """Whether the processor that numba compiles for has one of LLVM's features ("avx512f", "avx512vnni", "f16c", ...).

    That is the host, or what NUMBA_CPU_FEATURES says: so one machine tries what another compiles.
    """
    features = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return f"+{name}" in features.split(",")


def const(value: int) -> ir.Constant:
    """An int64."""
    return ir.Constant(I64, value)


def floats(value: float) -> ir.Constant:
    """A vector of one float32."""
    return ir.Constant(VECTOR, [value] * LANES)


def ints(value: int) -> ir.Constant:
    """A vector of one int32, given as its 32 bits."""
    signed = value - (1 << 32) if value >= 1 << 31 else value
    return ir.Constant(INTS, [signed] * LANES)


def at(builder: Any, address: Any, kind: Any) -> Any:
    """An address, an int64, as a pointer to values of this type."""
    return builder.inttoptr(address, kind.as_pointer())


def variable(builder: Any, value: Any) -> Any:
    """A place that holds a value, for `load` and `store`; LLVM keeps it in a register where it can."""
    return cgutils.alloca_once_value(builder, value)


def array(builder: Any, kind: Any, size: int) -> Any:
    """A place on the stack for this many values."""
    return cgutils.alloca_once(builder, kind, const(size))


@contextmanager
def count_to(builder: Any, size: Any) -> Iterator[Any]:
    """A loop: its body sees 0, 1, ... below size."""
    with cgutils.for_range(builder, size) as loop:
        yield loop.index


def broadcast(builder: Any, scalar: Any) -> Any:
    """A vector of one value, float or int32."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(INTS, [0] * LANES))


def load_vector(builder: Any, pointer: Any) -> Any:
    """16 floats from anywhere."""
    return builder.load(builder.bitcast(pointer, VECTOR.as_pointer()), align=4)


def load_lanes(builder: Any, pointer: Any, kind: Any) -> Any:
    """16 values of a type from anywhere."""
    vector = ir.VectorType(kind, LANES)
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)


def store_vector(builder: Any, vector: Any, pointer: Any) -> None:
    """16 floats to anywhere."""
    builder.store(vector, builder.bitcast(pointer, VECTOR.as_pointer()), align=4)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once; vectors or scalars."""
    kind = a.type
    name = "llvm.fma.f32" if kind == F32 else f"llvm.fma.v{LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


def widen_half(builder: Any, halves: Any) -> Any:
    """16 float16, given as int16, as float32: exact, infinities and NaN too."""
    if has_feature("f16c") or has_feature("neon"):
        return builder.fpext(builder.bitcast(halves, ir.VectorType(F16, LANES)), VECTOR)
    # Exponent and fraction moved to float32's places, and the exponent's bias put right by a product, which also
    # normalizes what is subnormal.
    wide = builder.zext(halves, INTS)
    magnitude = builder.shl(builder.and_(wide, ints(0x7FFF)), ints(13))
    finite = builder.bitcast(builder.fmul(builder.bitcast(magnitude, VECTOR), floats(2.0**112)), INTS)
    is_finite = builder.icmp_unsigned("<", magnitude, ints(0x7C00 << 13))
    magnitude = builder.select(is_finite, finite, builder.or_(magnitude, ints(0x7F800000)))
    sign = builder.shl(builder.and_(wide, ints(0x8000)), ints(16))
    return builder.bitcast(builder.or_(magnitude, sign), VECTOR)


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
