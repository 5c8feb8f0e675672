"""The products with weights of 4 and 8 bits: against their references in float64 on real shapes, and as a table of
times by the number of rows, beside cuBLAS in bfloat16. Two sections of one module: what is checked is what is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_checks.check import Check, Piece, word
from gpu_checks.elementwise import ALLOWED, compare
from gpu_checks.timing import graph_ms, num_sets
from torch import Tensor

from minivllm_kernels.fp8_linear import kernel as fp8
from minivllm_kernels.fp8_linear import reference as fp8_reference
from minivllm_kernels.int4_linear import kernel as int4
from minivllm_kernels.int4_linear.reference import dequantize_reference, int4_linear_reference
from minivllm_kernels.int8_dynamic_linear import kernel as int8_dynamic
from minivllm_kernels.int8_dynamic_linear import reference as int8_dynamic_reference
from minivllm_kernels.int8_linear import kernel as int8
from minivllm_kernels.int8_linear.reference import int8_linear_reference

# [out, in] of Qwen3-8B, of Qwen3-0.6B, and of the reference model.
LARGE = ((4096, 4096), (24_576, 4096), (4096, 12_288))
_SHAPES = {
    torch.bfloat16: (*LARGE, (256, 704)),
    torch.float16: ((1024, 3072), (256, 704), (300, 320)),
    torch.float32: ((256, 704), (300, 320)),
}
TINY = ((40, 256),)
ROWS = (1, 4, 8, 16, 32, 64, 128, 512, 2048)
# Times cuBLAS in bfloat16, by what and rows; all others must not be slower than this.
_AIMS = {("int4_linear", 1): 3.0, ("int4_linear", 64): 1.4, ("int8_dynamic_linear", 2048): 1.3}
_LEAST = 0.95
# Ways that are checked but not timed.
_ASIDE = ("zeros", "groups")
# A tensor core keeps 14 bits of a sum of 8-bit floats.
_ALLOWED_FP8 = 3e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """A weight, ready to be multiplied.

    Args:
        linear: of x; takes `config`, and `batch_invariant` where that is a choice.
        expected: what the product means.
        packed: what `linear` was given.
        eight_bits: whether the arithmetic is done in them.
    """

    linear: Callable[..., Tensor]
    expected: Callable[[Tensor], Tensor]
    packed: Any
    eight_bits: bool = False


def ways(check: Check) -> dict[str, Callable[..., Product]]:
    """By subject, what makes a product of (num_out, num_in, dtype, generator). float8 wants sm_89."""
    found: dict[str, Callable[..., Product]] = {
        "int4_linear": partial(make_int4, group_size=128, zeros=False),
        "int4_linear zeros": partial(make_int4, group_size=32, zeros=True),
        "int8_linear": partial(make_int8, groups=1),
        "int8_linear groups": partial(make_int8, groups=None),
        "int8_dynamic_linear": make_int8_dynamic,
    }
    if check.device.type == "cpu" or torch.cuda.get_device_capability() >= (8, 9):
        found["fp8_linear"] = make_fp8
    return found


def make_int4(
    num_out: int, num_in: int, dtype: torch.dtype, draws: torch.Generator, *, group_size: int, zeros: bool
) -> Product:
    group_size = group_size if num_in % group_size == 0 else 64
    codes = torch.randint(0, 16, (num_out, num_in), dtype=torch.uint8, generator=draws, device=draws.device)
    scales = _scales(num_out, num_in // group_size, num_in, 4, dtype, draws)
    middles = torch.randint(0, 16, scales.shape, dtype=torch.uint8, generator=draws, device=draws.device)
    given = (codes, scales, middles if zeros else None)
    packed = int4.pack(*given)
    return Product(
        linear=partial(_packed_second, int4.linear, packed), packed=packed,
        expected=lambda x: int4_linear_reference(x.double(), *given),
    )  # fmt: skip


def make_int8(num_out: int, num_in: int, dtype: torch.dtype, draws: torch.Generator, *, groups: int | None) -> Product:
    codes = _codes(num_out, num_in, draws)
    scales = _scales(num_out, groups or num_in // 64, num_in, 64, dtype, draws)
    packed = int8.pack(codes, scales)
    return Product(
        linear=partial(_packed_second, int8.linear, packed), packed=packed,
        expected=lambda x: int8_linear_reference(x.double(), codes, scales),
    )  # fmt: skip


def make_int8_dynamic(num_out: int, num_in: int, dtype: torch.dtype, draws: torch.Generator) -> Product:
    codes, scales = _codes(num_out, num_in, draws), _scales(num_out, 1, num_in, 64, torch.float32, draws)[:, 0]
    packed = int8_dynamic.pack(codes, scales)
    return Product(
        linear=partial(_packed_second, int8_dynamic.linear, packed), packed=packed, eight_bits=True,
        expected=partial(_expected_of_8_bits, int8_dynamic_reference, codes, scales),
    )  # fmt: skip


def make_fp8(num_out: int, num_in: int, dtype: torch.dtype, draws: torch.Generator) -> Product:
    weight = torch.randn((num_out, num_in), generator=draws, device=draws.device) / num_in**0.5
    codes, scales = fp8_reference.quantize_rows_reference(weight)
    packed = fp8.pack(codes, scales)
    return Product(
        linear=partial(_packed_second, fp8.linear, packed), packed=packed, eight_bits=True,
        expected=partial(_expected_of_8_bits, fp8_reference, codes, scales),
    )  # fmt: skip


def _packed_second(linear: Callable[..., Tensor], packed: object, x: Tensor, **options: Any) -> Tensor:
    return linear(x, packed, **options)


def _expected_of_8_bits(reference: Any, codes: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """In float64 to the end; the references themselves round to the dtype of x."""
    x_codes, x_scales = reference.quantize_rows_reference(x)
    return x_codes.double() @ codes.double().t() * x_scales.double()[:, None] * scales.double()


def _codes(num_out: int, num_in: int, draws: torch.Generator) -> Tensor:
    return torch.randint(-127, 128, (num_out, num_in), generator=draws, device=draws.device).to(torch.int8)


def _scales(
    num_out: int, groups: int, num_in: int, spread: float, dtype: torch.dtype, draws: torch.Generator
) -> Tensor:
    """So that results are of the size of x, where codes spread so far."""
    uniform = torch.rand((num_out, groups), generator=draws, device=draws.device)
    return ((uniform + 0.5) / (spread * num_in**0.5)).to(dtype)


def pieces(check: Check) -> Iterator[Piece]:
    if check.section != "quantized":
        yield from _pieces_of_speed(check)
        return
    for name, make in ways(check).items():
        for dtype in check.dtypes:
            shapes = TINY if check.tiny else _SHAPES[dtype]
            # Every shape is compiled anew: zeros and groups are looked at on one.
            for num_out, num_in in shapes[:1] if name.endswith(_ASIDE) else shapes:
                title = f"{name} {word(dtype)}: {num_out}x{num_in}"
                yield title, partial(_check_product, check, title, make, num_out, num_in, dtype)
    yield "int4_linear: dequantize", partial(_check_dequantize, check)
    for name, kernel, reference in (
        ("int8_dynamic_linear", int8_dynamic, int8_dynamic_reference),
        ("fp8_linear", fp8, fp8_reference),
    ):
        if name in ways(check):
            yield f"{name}: rows", partial(_check_rows, check, f"{name}: rows", kernel, reference)


def _check_product(
    check: Check, title: str, make: Callable[..., Product], num_out: int, num_in: int, dtype: torch.dtype
) -> None:
    """What comes out, the same again, the same from a graph, and the same in another batch where that is promised."""
    draws = check.generator(num_out)
    product = make(num_out, num_in, dtype, draws)
    allowed = ALLOWED[dtype] if not title.startswith("fp8") else max(_ALLOWED_FP8, ALLOWED[dtype])
    most = 5 if check.tiny else 2048 if dtype is not torch.float32 else 70
    x = torch.randn((most, num_in), generator=draws, device=check.device).to(dtype)
    expected = product.expected(x)
    for rows in (1, 5) if check.tiny else (*(rows for rows in ROWS if rows <= most), 17, 65, 257):
        if rows > most:
            continue
        out = product.linear(x[:rows])
        compare(check, f"{title} N{rows}", out, expected[:rows], allowed)
        check.holds(f"{title} N{rows} again", torch.equal(product.linear(x[:rows]), out))
        if check.device.type == "cuda" and rows in (1, 64):
            check.holds(f"{title} N{rows} from a graph", torch.equal(_from_a_graph(product, x[:rows].clone()), out))
    check.holds(f"{title} counters are left at zero", not product.packed.counters.any().item())
    options = {} if title.startswith("int8_dynamic") else {"batch_invariant": True}
    whole = product.linear(x, **options)
    compare(check, f"{title} in any batch", whole, expected, allowed)
    for rows in (1, 3) if check.tiny else (1, 17, 65):
        for first in (0, most - rows):
            same = torch.equal(product.linear(x[first : first + rows], **options), whole[first : first + rows])
            check.holds(f"{title} same bits, rows {first} to {first + rows}", same)


def _from_a_graph(product: Product, x: Tensor) -> Tensor:
    """Of the second replay, which finds what the first has left."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        out = product.linear(x)
    for _ in range(2):
        out.fill_(float("nan"))
        graph.replay()
    torch.cuda.synchronize()
    return out


def _check_dequantize(check: Check) -> None:
    num_out, num_in = TINY[0] if check.tiny else (1024, 3072)
    for dtype in check.dtypes:
        draws = check.generator(3)
        codes = torch.randint(0, 16, (num_out, num_in), dtype=torch.uint8, generator=draws, device=check.device)
        scales = _scales(num_out, num_in // 64, num_in, 4, dtype, draws)
        expected = dequantize_reference(codes, scales).to(dtype)
        same = torch.equal(int4.dequantize(int4.pack(codes, scales)), expected)
        check.holds(f"int4_linear: dequantize {word(dtype)}", same)


def _check_rows(check: Check, title: str, kernel: Any, reference: Any) -> None:
    """To the bit, on the CPU: CUDA divides a tensor by a number by its inverse."""
    for dtype in check.dtypes:
        for rows, num_in in ((3, 300),) if check.tiny else ((1, 12_288), (300, 4096), (65, 704), (7, 1000)):
            x = torch.randn((rows, num_in), generator=check.generator(rows), device=check.device)
            x = (x * torch.logspace(-4, 4, rows, base=10, device=check.device)[:, None]).to(dtype)
            codes, scales = kernel.quantize_rows(x)
            expected_codes, expected_scales = reference.quantize_rows_reference(x.cpu())
            same = torch.equal(codes.cpu().view(torch.uint8), expected_codes.view(torch.uint8))
            check.holds(f"{title} {word(dtype)} N{rows} C{num_in}", same and torch.equal(scales.cpu(), expected_scales))


def _pieces_of_speed(check: Check) -> Iterator[Piece]:
    for num_out, num_in in TINY if check.tiny else LARGE:
        name = f"matmul {num_out}x{num_in}"
        yield name, partial(_table, check, num_out, num_in)


def _table(check: Check, num_out: int, num_in: int) -> None:
    """Of one weight, all ways and all numbers of rows."""
    dtype, rows_of = (torch.float16, (2,)) if check.tiny else (torch.bfloat16, ROWS)
    xs = {rows: torch.randn((rows, num_in), device=check.device).to(dtype) for rows in rows_of}
    num_bytes = num_out * num_in * dtype.itemsize
    weights = [torch.randn((num_out, num_in), device=check.device).to(dtype) for _ in range(num_sets(check, num_bytes))]
    base_ms = {rows: _time(check, [partial(F.linear, x, weight) for weight in weights], rows) for rows, x in xs.items()}
    for rows in rows_of:
        value, floor = _us(base_ms[rows]), floor_us(check, rows, num_out, num_in, num_bytes, dtype)
        check.figure(f"matmul cuBLAS {word(dtype)}: {num_out}x{num_in} N{rows}", value, "us", floor=floor)
    del weights
    for name, make in ways(check).items():
        if name.endswith(_ASIDE) or not check.may_time(f"{name} {word(dtype)}"):
            continue
        draws = check.generator(5)
        first = make(num_out, num_in, dtype, draws)
        sets = [first, *(make(num_out, num_in, dtype, draws) for _ in range(num_sets(check, first.packed.nbytes) - 1))]
        for rows, x in xs.items():
            time_ms, base = _time(check, [partial(one.linear, x) for one in sets], rows), base_ms[rows]
            case = f"{num_out}x{num_in} N{rows}"
            floor = floor_us(check, rows, num_out, num_in, first.packed.nbytes, dtype, eight_bits=first.eight_bits)
            check.figure(f"matmul {name}: {case}", _us(time_ms), "us", floor=floor)
            ratio = None if time_ms is None or base is None else base / time_ms
            aim = _AIMS.get((name, rows), _LEAST)
            check.figure(f"matmul {name} faster than cuBLAS: {case}", ratio, "x", aim=aim)


def _time(check: Check, launches: list[Callable[[], object]], rows: int) -> float | None:
    return graph_ms(check, launches, at_least=100 if rows <= 128 else 20, replays=9)


def _us(time_ms: float | None) -> float | None:
    return None if time_ms is None else time_ms * 1e3


def floor_us(
    check: Check, rows: int, num_out: int, num_in: int, num_bytes: int, dtype: torch.dtype, *, eight_bits: bool = False
) -> float | None:
    """To read the weight and x and write the result, or to do the arithmetic. That of 8 bits is taken for twice as fast
    as what was measured in `dtype`."""
    if check.peaks is None:
        return None
    moved = num_bytes + rows * (num_in + num_out) * dtype.itemsize
    flops = 2 * rows * num_out * num_in / (2 if eight_bits else 1)
    return max(moved / check.peaks.read_bps, flops / check.peaks.flops[word(dtype)]) * 1e6
