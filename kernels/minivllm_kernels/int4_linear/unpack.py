"""PTX that turns words of codes into numbers, two at a time; Triton's own words for it take three times as many.

A code is or-ed into the last digits of a float whose last digit counts 1, and that float is taken off again, and the
zero with it: exact, as all of it is whole numbers of at most eleven bits in float16 (1024 + code) and eight in bfloat16
(128 + code).
"""

from __future__ import annotations

from functools import cache

import torch

# lop3's table for (a & b) | c, and for (a & b) ^ c.
_AND_OR, _AND_XOR = "0xea", "0x6a"


@cache
def unpack_ptx(bits: int, dtype: torch.dtype, *, has_zeros: bool) -> str:
    """From two words, neighbours in a row, a register for each slice: with its code in the first, and in the second.

    Outputs are $0 and on, then come the words, and then, of each quarter of the slices, a register that has what is
    added to its codes twice: -(1024 or 128) - zero.

    Args:
        bits: of a code, 4 or 8; 8 bits are signed and have no zeros.
        dtype: float16 or bfloat16.
        has_zeros: False where the zero is 8.
    """
    num_slices = 32 // bits
    lines = [
        ".reg .b32 low, high, shifted, other;",
        # The lower halves of both words, and the upper: two codes of a slice are 16 bits apart.
        f"prmt.b32 low, ${num_slices}, ${num_slices + 1}, 0x5410;",
        f"prmt.b32 high, ${num_slices}, ${num_slices + 1}, 0x7632;",
    ]
    for number in range(num_slices):
        source, first = ("low", "high")[number >= num_slices // 2], number * bits % 16
        if bits == 8:
            lines += _take_8_bits(f"${number}", source, first, dtype is torch.float16)
        else:
            minus = f"${num_slices + 2 + number * 4 // num_slices}" if has_zeros else None
            lines += _take_4_bits(f"${number}", source, first, minus, dtype is torch.float16)
    return "{\n" + "\n".join(f"    {line}" for line in lines) + "\n}"


def _shift(source: str, by: int) -> tuple[list[str], str]:
    return ([f"shr.u32 shifted, {source}, {by};"], "shifted") if by else ([], source)


def _take_4_bits(out: str, source: str, first: int, minus: str | None, half: bool) -> list[str]:
    """The bits from `first` on of both halves of a register; `minus` is a register, None for a zero of 8."""
    if half and first % 8 == 4:
        # Left where they are, they count 16: (1024 + 16 code) / 16 less 64 and the zero, where 64 = 1024 - 960.
        lines, source = _shift(source, first - 4)
        lines += [f"lop3.b32 {out}, {source}, 0x00f000f0, 0x64006400, {_AND_OR};", "mov.b32 other, 0x63806380;"]
        lines.append(f"add.f16x2 other, other, {minus};" if minus else "mov.b32 other, 0xd480d480;")
        return [*lines, "mov.b32 shifted, 0x2c002c00;", f"fma.rn.f16x2 {out}, {out}, shifted, other;"]
    lines, source = _shift(source, first)
    if half:
        lines.append(f"lop3.b32 {out}, {source}, 0x000f000f, 0x64006400, {_AND_OR};")
        lines.append(f"mov.b32 other, {minus or '0xe408e408'};")
        return [*lines, f"add.f16x2 {out}, {out}, other;"]
    # An addition of bfloat16 is Hopper's; Ampere's product with 1 and addition is the same.
    lines.append(f"lop3.b32 {out}, {source}, 0x000f000f, 0x43004300, {_AND_OR};")
    lines += [f"mov.b32 other, {minus or '0xc308c308'};", "mov.b32 shifted, 0x3f803f80;"]
    return [*lines, f"fma.rn.bf16x2 {out}, {out}, shifted, other;"]


def _take_8_bits(out: str, source: str, first: int, half: bool) -> list[str]:
    lines, source = _shift(source, first)
    if half:
        # With its sign turned a byte is its value + 128, and 1152 is 1024 + 128.
        take = f"lop3.b32 {out}, {source}, 0x00ff00ff, 0x64806480, {_AND_XOR};"
        return [*lines, take, "mov.b32 other, 0xe480e480;", f"add.f16x2 {out}, {out}, other;"]
    # bfloat16 has seven digits: 128 and the lower seven bits, less 128, or where the sign is set 256.
    return [
        *lines,
        f"lop3.b32 {out}, {source}, 0x007f007f, 0x43004300, {_AND_OR};",
        f"lop3.b32 other, {source}, 0x00800080, 0x43004300, {_AND_OR};",
        "mov.b32 shifted, 0xbf80bf80;",
        f"fma.rn.bf16x2 {out}, other, shifted, {out};",
    ]
