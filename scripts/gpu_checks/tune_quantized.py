"""The products with weights of 4 and 8 bits over tiles, warps, stages and splits, and where unpacking the whole weight
for cuBLAS begins to pay: what a better default would be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from gpu_checks.check import Check, Piece
from gpu_checks.quantized import LARGE, TINY, Product, floor_us, ways
from gpu_checks.timing import graph_ms, num_sets

from minivllm_kernels.int4_linear import kernel as int4
from minivllm_kernels.int4_linear.config import CodesConfig
from minivllm_kernels.int4_linear.product.kernel import choose
from minivllm_kernels.int8_dynamic_linear.config import EightBitConfig

# Of each product: rows, and the tiles of rows to try for them.
_BLOCKS_M: dict[str, dict[int, tuple[int, ...]]] = {
    "int4_linear": {1: (16,), 16: (16, 32), 32: (32, 64), 64: (64,), 256: (64, 128)},
    "int8_dynamic_linear": {1: (16,), 16: (16, 32), 64: (64,), 128: (64, 128), 2048: (128, 256)},
}
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)


def pieces(check: Check) -> Iterator[Piece]:
    for num_out, num_in in TINY if check.tiny else LARGE[:2]:
        for name, blocks in _BLOCKS_M.items():
            for rows in (2,) if check.tiny else blocks:
                subject = f"tune quantized {name} {num_out}x{num_in} N{rows}"
                yield subject, partial(_configs, check, subject, name, num_out, num_in, rows)
        yield f"tune quantized crossover {num_out}x{num_in}", partial(_crossover, check, num_out, num_in)


def _sets(check: Check, name: str, num_out: int, num_in: int) -> list[Product]:
    """So many that they are several times the L2."""
    dtype, make, draws = torch.float16 if check.tiny else torch.bfloat16, ways(check)[name], check.generator(6)
    first = make(num_out, num_in, dtype, draws)
    more = num_sets(check, first.packed.nbytes, most=16) - 1
    return [first, *(make(num_out, num_in, dtype, draws) for _ in range(more))]


def variants(check: Check, name: str, rows: int) -> Iterator[CodesConfig | EightBitConfig]:
    """How the inputs are split needs at most one more compilation, so there are many of these."""
    kind = CodesConfig if name == "int4_linear" else EightBitConfig
    for block_m, num_stages in product((16,) if check.tiny else _BLOCKS_M[name][rows], (3, 5)):
        for block_n in (64,) if check.tiny else (64, 128) if block_m <= 32 else (128,):
            yield from _with_splits(check, kind, block_m, block_n, num_stages)
        if check.tiny:
            return


def _with_splits(
    check: Check, kind: type[CodesConfig] | type[EightBitConfig], block_m: int, block_n: int, num_stages: int
) -> Iterator[CodesConfig | EightBitConfig]:
    # As many warps as leave a thread room for its sums.
    num_warps = 8 if block_m * block_n > 64 * 64 else 4
    for num_splits in (1, 2) if check.tiny else _SPLITS:
        yield kind(block_m=block_m, block_n=block_n, num_splits=num_splits, num_warps=num_warps, num_stages=num_stages)


def _configs(check: Check, subject: str, name: str, num_out: int, num_in: int, rows: int) -> None:
    dtype = torch.float16 if check.tiny else torch.bfloat16
    if not check.may_time(f"{name} {str(dtype).removeprefix('torch.')}"):
        return
    sets = _sets(check, name, num_out, num_in)
    x = torch.randn((rows, num_in), device=check.device).to(dtype)
    floor = floor_us(check, rows, num_out, num_in, sets[0].packed.nbytes, dtype, eight_bits=sets[0].eight_bits)
    for config in (None, *variants(check, name, rows)):
        title = "default"
        if config is not None:
            programs = -(-rows // config.block_m) * -(-num_out // config.block_n) * config.num_splits
            # Merging is for when tiles do not fill the GPU.
            if config.num_splits > 1 and programs > 132 * 8:
                continue
            title = f"{config.block_m}x{config.block_n} warps {config.num_warps} stages {config.num_stages}"
            title += f" splits {config.num_splits}"
        options: dict[str, Any] = {} if config is None else {"config": config}
        try:
            time_ms = graph_ms(check, [partial(one.linear, x, **options) for one in sets], at_least=40, replays=5)
        except Exception as error:
            # Triton's own words where a tile does not fit.
            if "out of resource" not in str(error):
                raise
            continue
        check.figure(f"{subject}: {title}", None if time_ms is None else time_ms * 1e3, "us", floor=floor)


def _crossover(check: Check, num_out: int, num_in: int) -> None:
    """The kernel against unpacking for cuBLAS, whatever `dequantizes` says."""
    dtype = torch.float16 if check.tiny else torch.bfloat16
    sets = _sets(check, "int4_linear", num_out, num_in)
    for rows in (2,) if check.tiny else (64, 128, 192, 256, 384, 512, 1024):
        x = torch.randn((rows, num_in), device=check.device).to(dtype)
        config = choose(x, sets[0].packed, batch_invariant=False)
        times = {
            "kernel": [partial(one.linear, x, config=config) for one in sets],
            "cuBLAS": [partial(_by_cublas, x, one.packed) for one in sets],
        }
        for title, launches in times.items():
            time_ms = graph_ms(check, launches, at_least=20, replays=5)
            value = None if time_ms is None else time_ms * 1e3
            check.figure(f"tune quantized crossover {num_out}x{num_in} N{rows}: {title}", value, "us")


def _by_cublas(x: torch.Tensor, packed: Any) -> torch.Tensor:
    return F.linear(x, int4.dequantize(packed))
