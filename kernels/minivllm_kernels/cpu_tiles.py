"""Products with a weight that lies in panels, a tile of outputs at a time in vector registers: what `linear`,
`half_linear`, `int8_linear`, `int4_linear` and `int8_dynamic_linear` share.

A panel is 32 outputs wide and as long as the input, stored in the order in which it is read. A tile of up to 8 rows by
one panel, or of 1 or 2 rows by two panels side by side, stays in registers while the panels stream past: so a weight is
read once for every 8 rows, and there are enough chains of additions to keep the units busy.

Every output is one fixed sequence of operations over the inputs, in order, whatever the tile: a row's result is bitwise
the same in any batch and on any number of threads, and for floats also on any processor.

The inner loops are written with 16 lanes and without intrinsics (but one, see `int8_dynamic_linear`). Narrow codes
become floats without a conversion: a code's bits, where they lie in a 32-bit word, are the low bits of the fraction of
a float whose exponent is put in front of them, and that float is 2 ** n + code. One operation for mask and exponent,
one subtraction for 2 ** n and the code's zero, both exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivllm_kernels.cpu_ir import (
    F32,
    I8,
    I16,
    I32,
    INTS,
    LANES,
    VECTOR,
    array,
    at,
    broadcast,
    const,
    count_to,
    floats,
    fma,
    has_feature,
    ints,
    load_lanes,
    load_vector,
    store_vector,
    variable,
    widen_half,
)

PANEL_WIDTH = 2 * LANES
# 32 vector registers of 16 floats hold 8 x 2 sums; 16 of 8 floats hold 2 x 4 and what they are made of.
MAX_ROWS = 8 if has_feature("avx512f") else 2
# Up to this height a tile is two panels wide where it can be.
MAX_PAIR_ROWS = 2 if has_feature("avx512f") else 1

# What a kernel is called with, by place: addresses (0 is none), then sizes.
X, PANELS, SCALES, ZEROS, BIAS, OUT, SCRATCH, NUM_ROWS, NUM_INPUTS, NUM_OUTPUTS, GROUP_SIZE = range(11)
NUM_ARGUMENTS = 11


class Tile:
    """One tile in one kernel: `num_rows` rows from `first_row` on, by `num_panels` panels from `panel` on.

    Args:
        arguments: pointer to the kernel's int64 arguments.
        panel, first_row, width: int64 values; `width` counts the outputs there are, 64 where there are two panels.
        num_rows, num_panels: known when the code is written.
    """

    def __init__(
        self, builder: Any, arguments: Any, scratch: Any, panel: Any, first_row: Any, width: Any,
        num_rows: int, num_panels: int,
    ) -> None:  # fmt: skip
        self.builder, self.arguments, self.scratch = builder, arguments, scratch
        self.panel, self.first_row, self.width = panel, first_row, width
        self.num_rows, self.num_panels = num_rows, num_panels
        self.column = builder.mul(panel, const(PANEL_WIDTH))

    def argument(self, place: int) -> Any:
        return self.builder.load(self.builder.gep(self.arguments, [const(place)]))

    def rows(self, place: int, kind: Any, size: Any) -> list[Any]:
        """Pointers to this tile's rows of an array whose rows have `size` values."""
        start = at(self.builder, self.argument(place), kind)
        return [
            self.builder.gep(start, [self.builder.mul(self.builder.add(self.first_row, const(m)), size)])
            for m in range(self.num_rows)
        ]

    def panels(self, place: int, kind: Any, size: Any) -> list[Any]:
        """Pointers to this tile's panels of an array that has `size` values a panel."""
        start = at(self.builder, self.argument(place), kind)
        return [
            self.builder.gep(start, [self.builder.mul(self.builder.add(self.panel, const(p)), size)])
            for p in range(self.num_panels)
        ]

    def halves(self, panels: list[Any], index: Any, kind: Any) -> list[Any]:
        """The 32 values of each panel at `index`, in vectors of 16."""
        start = self.builder.mul(index, const(PANEL_WIDTH))
        return [
            load_lanes(self.builder, self.builder.gep(panel, [self.builder.add(start, const(h * LANES))]), kind)
            for panel in panels
            for h in range(2)
        ]

    def sums(self, starts: list[Any]) -> list[list[Any]]:
        """A place for the sum of each row and vector."""
        return [[variable(self.builder, start) for start in starts] for _ in range(self.num_rows)]

    def bias(self) -> list[Any]:
        """The bias of these outputs in vectors, zeros where there is none."""
        builder, offsets = self.builder, [const(h * LANES) for h in range(2 * self.num_panels)]
        address = self.argument(BIAS)
        values = [variable(builder, floats(0.0)) for _ in offsets]

        def load(start: Any) -> None:
            for offset, value in zip(offsets, values, strict=True):
                builder.store(load_vector(builder, builder.gep(start, [offset])), value)

        with builder.if_then(builder.icmp_unsigned("!=", address, const(0))):
            source = builder.gep(at(builder, address, F32), [self.column])
            with builder.if_else(self.is_whole()) as (whole, partial):
                with whole:
                    load(source)
                with partial:
                    copy = array(builder, F32, self.num_panels * PANEL_WIDTH)
                    with count_to(builder, self.width) as i:
                        builder.store(builder.load(builder.gep(source, [i])), builder.gep(copy, [i]))
                    load(copy)
        return [builder.load(value) for value in values]

    def is_whole(self) -> Any:
        return self.builder.icmp_signed("==", self.width, const(self.num_panels * PANEL_WIDTH))

    def write(self, results: list[list[Any]]) -> None:
        """Store a vector for each row and 16 outputs, of the last panel only the outputs that there are."""
        builder = self.builder
        targets = [builder.gep(row, [self.column]) for row in self.rows(OUT, F32, self.argument(NUM_OUTPUTS))]

        def store(starts: list[Any]) -> None:
            for start, vectors in zip(starts, results, strict=True):
                for h, vector in enumerate(vectors):
                    store_vector(builder, vector, builder.gep(start, [const(h * LANES)]))

        if self.num_panels > 1:
            store(targets)
            return
        with builder.if_else(self.is_whole()) as (whole, partial):
            with whole:
                store(targets)
            with partial:
                copies = [array(builder, F32, PANEL_WIDTH) for _ in targets]
                store(copies)
                for target, copy in zip(targets, copies, strict=True):
                    with count_to(builder, self.width) as i:
                        builder.store(builder.load(builder.gep(copy, [i])), builder.gep(target, [i]))


ALL_SHAPES = [(m, 1) for m in range(1, MAX_ROWS + 1)] + [(m, 2) for m in range(1, MAX_PAIR_ROWS + 1)]
# Of more than MAX_ROWS rows, in tiles of equal height.
HIGH_SHAPES = [(m, 1) for m in range(MAX_ROWS // 2, MAX_ROWS + 1)]


def emit_tiles(builder: Any, args: Any, shapes: list[tuple[int, int]], emit: Callable[[Tile], None]) -> None:
    """Code for these shapes of a tile, rows by panels, and the choice.

    args: (arguments, scratch, panel, num_panels, first_row, num_rows, width), all but the first int64.
    """
    arguments, scratch, panel, num_panels, first_row, num_rows, width = args
    done = builder.append_basic_block("done")
    switch = builder.switch(builder.add(num_rows, builder.mul(num_panels, const(100))), done)
    for shape in shapes:
        block = builder.append_basic_block(f"rows{shape[0]}panels{shape[1]}")
        switch.add_case(const(shape[0] + 100 * shape[1]), block)
        with builder.goto_block(block):
            emit(Tile(builder, arguments, scratch, panel, first_row, width, *shape))
            builder.branch(done)
    builder.position_at_end(done)


def add_products(tile: Tile, sums: list[list[Any]], values: list[Any], weights: list[Any]) -> None:
    """sums[m][h] += values[m] * weights[h], values being scalars in memory."""
    builder = tile.builder
    for value, row_sums in zip(values, sums, strict=True):
        wide = broadcast(builder, builder.load(value))
        for total, weight in zip(row_sums, weights, strict=True):
            builder.store(fma(builder, wide, weight, builder.load(total)), total)


def float_tile(tile: Tile, kind: str) -> None:
    """Weights that are floats: one chain of fused multiply-adds an output, from the bias on.

    kind: "float32", "float16", panels [in, 32]; or "bfloat16", panels [ceil(in / 2), 32, 2], pairs of inputs in a word.
    """
    builder, size = tile.builder, tile.argument(NUM_INPUTS)
    is_pairs = kind == "bfloat16"
    stored = {"float32": F32, "float16": I16, "bfloat16": I32}[kind]
    steps = builder.sdiv(builder.add(size, const(1)), const(2)) if is_pairs else size
    panels = tile.panels(PANELS, stored, builder.mul(steps, const(PANEL_WIDTH)))
    rows = tile.rows(X, F32, size)
    sums = tile.sums(tile.bias())

    def add(index: Any, weights: list[Any]) -> None:
        add_products(tile, sums, [builder.gep(row, [index]) for row in rows], weights)

    def low(words: list[Any]) -> list[Any]:
        return [builder.bitcast(builder.shl(word, ints(16)), VECTOR) for word in words]

    if is_pairs:
        with count_to(builder, builder.sdiv(size, const(2))) as i:
            words = tile.halves(panels, i, stored)
            add(builder.mul(i, const(2)), low(words))
            high = [builder.bitcast(builder.and_(word, ints(0xFFFF0000)), VECTOR) for word in words]
            add(builder.add(builder.mul(i, const(2)), const(1)), high)
        with builder.if_then(builder.icmp_signed("!=", builder.and_(size, const(1)), const(0))):
            add(builder.sub(size, const(1)), low(tile.halves(panels, builder.sdiv(size, const(2)), stored)))
    else:
        with count_to(builder, size) as i:
            words = tile.halves(panels, i, stored)
            add(i, words if kind == "float32" else [widen_half(builder, word) for word in words])
    tile.write([[builder.load(total) for total in row] for row in sums])


class Codes:
    """Where a tile's codes lie, and how they become floats.

    Panels are [ceil(in / n), 32] words of n = 32 / bits inputs, the first in the low bits. Scales are [groups, 32],
    float16 and zeros uint8 for 4 bits; float32, and codes 128 too large instead of zeros, for 8.
    """

    def __init__(self, tile: Tile, bits: int) -> None:
        builder = tile.builder
        self.tile, self.bits, self.per_word = tile, bits, 32 // bits
        self.size, self.group_size = tile.argument(NUM_INPUTS), tile.argument(GROUP_SIZE)
        self.num_groups = builder.sdiv(self.size, self.group_size)
        self.words_per_group = builder.sdiv(self.group_size, const(self.per_word))
        # More than none only where one group is the whole input, and that is no whole number of words.
        self.rest = builder.srem(self.group_size, const(self.per_word))
        words = builder.sdiv(builder.add(self.size, const(self.per_word - 1)), const(self.per_word))
        values = builder.mul(self.num_groups, const(PANEL_WIDTH))
        self.scale_kind = I16 if bits == 4 else F32
        self.words = tile.panels(PANELS, I32, builder.mul(words, const(PANEL_WIDTH)))
        self.scales = tile.panels(SCALES, self.scale_kind, values)
        self.zeros = tile.panels(ZEROS, I8, values)
        self.zero = [variable(builder, floats(float(1 << (bits - 1)))) for _ in range(2 * tile.num_panels)]

    def each_input(self, group: Any, emit: Callable[[Any, list[Any]], None]) -> None:
        """Loops that call `emit(index, weights)` for every input of a group, in order; weights without their scale."""
        tile, builder, bits = self.tile, self.tile.builder, self.bits
        if bits == 4:
            with builder.if_then(builder.icmp_unsigned("!=", tile.argument(ZEROS), const(0))):
                for place, codes in zip(self.zero, tile.halves(self.zeros, group, I8), strict=True):
                    builder.store(builder.uitofp(builder.zext(codes, INTS), VECTOR), place)
        zero = [builder.load(z) for z in self.zero]
        # Places of codes in a word that an exponent fits in front of; the upper half is shifted down for its turn.
        places = range(0, 16, bits)
        minus = {p: [builder.fadd(z, floats(float(1 << (23 - p)))) for z in zero] for p in places}

        def decode(words: list[Any], place: int) -> list[Any]:
            mask, exponent = ints(((1 << bits) - 1) << place), ints((150 - place) << 23)
            raw = [builder.bitcast(builder.or_(builder.and_(word, mask), exponent), VECTOR) for word in words]
            return [builder.fsub(r, m) for r, m in zip(raw, minus[place], strict=True)]

        first = builder.mul(group, self.group_size)
        first_word = builder.mul(group, self.words_per_group)
        with count_to(builder, self.words_per_group) as i:
            words = tile.halves(self.words, builder.add(first_word, i), I32)
            index = builder.add(first, builder.mul(i, const(self.per_word)))
            for shift in (0, 16):
                words = [builder.lshr(word, ints(shift)) for word in words] if shift else words
                for place in places:
                    emit(builder.add(index, const((shift + place) // bits)), decode(words, place))
        with count_to(builder, self.rest) as i:
            words = tile.halves(self.words, self.words_per_group, I32)
            shift = broadcast(builder, builder.trunc(builder.mul(i, const(bits)), I32))
            index = builder.add(builder.mul(self.words_per_group, const(self.per_word)), i)
            emit(index, decode([builder.lshr(word, shift) for word in words], 0))

    def scales_of(self, group: Any) -> list[Any]:
        scales = self.tile.halves(self.scales, group, self.scale_kind)
        return [widen_half(self.tile.builder, scale) for scale in scales] if self.bits == 4 else scales


def code_tile(tile: Tile, bits: int, is_decoded: bool) -> None:
    """Weights that are codes of 4 or 8 bits with a scale for each group of inputs: a chain of fused multiply-adds for
    each group of an output, and one over the groups' sums, times their scales, from the bias on.

    is_decoded: read the weights where `decode_panel` has left them.
    """
    builder, codes = tile.builder, Codes(tile, bits)
    rows = tile.rows(X, F32, codes.size)
    sums = tile.sums(tile.bias())
    group_sums = tile.sums([floats(0.0)] * len(sums[0]))

    def add(index: Any, weights: list[Any]) -> None:
        add_products(tile, group_sums, [builder.gep(row, [index]) for row in rows], weights)

    with count_to(builder, codes.num_groups) as group:
        for row_sums in group_sums:
            for total in row_sums:
                builder.store(floats(0.0), total)
        if is_decoded:
            first = builder.mul(group, codes.group_size)
            with count_to(builder, codes.group_size) as i:
                index = builder.add(first, i)
                add(index, tile.halves([at(builder, tile.scratch, F32)], index, F32))
        else:
            codes.each_input(group, add)
        for row_sums, row_group in zip(sums, group_sums, strict=True):
            for total, part, scale in zip(row_sums, row_group, codes.scales_of(group), strict=True):
                builder.store(fma(builder, builder.load(part), scale, builder.load(total)), total)
    tile.write([[builder.load(total) for total in row] for row in sums])


def decode_panel(builder: Any, args: Any, bits: int) -> None:
    """Code that writes a panel's weights, without their scales, to scratch: [in, 32] float32.

    args: (arguments, scratch, panel).
    """
    arguments, scratch, panel = args
    tile = Tile(builder, arguments, scratch, panel, const(0), const(PANEL_WIDTH), 1, 1)
    codes, target = Codes(tile, bits), at(builder, tile.scratch, F32)

    def write(index: Any, weights: list[Any]) -> None:
        for h, weight in enumerate(weights):
            at_half = builder.add(builder.mul(index, const(PANEL_WIDTH)), const(h * LANES))
            store_vector(builder, weight, builder.gep(target, [at_half]))

    with count_to(builder, codes.num_groups) as group:
        codes.each_input(group, write)
