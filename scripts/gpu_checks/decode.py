"""Decode attention against float64 on real shapes: head groups, head sizes, block sizes, windows, dtypes, 8-bit K/V,
contexts that end everywhere, padding rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu_checks.check import Check, Piece, poisoned
from gpu_checks.elementwise import ALLOWED, compare
from gpu_checks.paged import Batch, Sizes, expected_output, make_batch

from minivllm_kernels.paged_attention.kernel import paged_decode

# Where contexts end: nothing, one key, around tiles, blocks and splits, far.
_ODD = (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 255, 256, 257, 511, 513, 1000, 2047, 2049, 5000, 16385, 0)


def batch_of(contexts: tuple[int, ...], **sizes: Any) -> Sizes:
    """One query a request; a context of 0 is a padding row, which has a row of q as well."""
    return Sizes(queries=(1,) * len(contexts), contexts=contexts, **sizes)


def pieces(check: Check) -> Iterator[Piece]:
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    if check.tiny:
        small: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "block_size": 16}
        cases = [
            batch_of((17, 0, 40), **small),
            batch_of((17, 40), **{**small, "dtype": full, "sliding_window": 9}),
            batch_of((33,), **{**small, "cache_dtype": torch.int8}),
        ]
    else:
        cases = [batch_of(_ODD, dtype=dtype, block_size=size) for dtype in check.dtypes for size in (16, 64, 256)]
        # The shapes that are timed.
        cases += [batch_of((length,) * rows) for rows, length in ((32, 2048), (8, 2048), (32, 512), (1, 2048))]
        cases += [batch_of(tuple(1000 + 37 * i for i in range(256)), dtype=brain, block_size=16, num_heads=32)]
        for head_dim in (64, 80, 256):
            cases += [batch_of(_ODD, dtype=dtype, head_dim=head_dim, block_size=16) for dtype in (half, brain)]
        for group in (1, 4, 7, 8):
            for dtype in (half, brain, full):
                cases.append(batch_of(_ODD[5:], dtype=dtype, num_heads=4 * group, num_kv_heads=4, block_size=64))
        for window in (1, 100, 1024, 4096):
            cases += [batch_of(_ODD, dtype=brain, sliding_window=window, block_size=size) for size in (16, 256)]
        for cache_dtype in (torch.int8, torch.float8_e4m3fn):
            for dtype in (half, brain):
                cases += [batch_of(_ODD, dtype=dtype, cache_dtype=cache_dtype, block_size=size) for size in (16, 256)]
    for sizes in cases:
        yield f"paged_decode {sizes.kind}: {name_of(sizes)}", partial(_check, check, sizes)


def name_of(sizes: Sizes) -> str:
    contexts = sorted(set(sizes.contexts))
    return (
        f"R{len(sizes.contexts)} context {contexts[0]}{f' to {contexts[-1]}' if len(contexts) > 1 else ''} "
        f"H{sizes.num_heads} K{sizes.num_kv_heads} D{sizes.head_dim} B{sizes.block_size}"
        + (f" window {sizes.sliding_window}" if sizes.sliding_window else "")
        + (f" {str(sizes.dtype).removeprefix('torch.')}" if sizes.cache_dtype else "")
    )


def run(batch: Batch, out: torch.Tensor, **options: Any) -> torch.Tensor:
    return paged_decode(
        batch.q, batch.kv_cache, batch.block_table, batch.context_lens, scale=batch.sizes.scale,
        sliding_window=batch.sizes.sliding_window, kv_scales=batch.kv_scales, out=out, **options,
    )  # fmt: skip


def _check(check: Check, sizes: Sizes) -> None:
    batch = make_batch(sizes, check.device, check.generator(len(sizes.contexts)))
    expected = expected_output(batch)
    name = f"paged_decode {sizes.kind}: {name_of(sizes)}"
    # Twice: what a launch leaves behind must not change the next.
    for again in ("", " again"):
        out = run(batch, poisoned(batch.q.shape, sizes.dtype, check.device))
        compare(check, name + again, out, expected, ALLOWED[sizes.dtype])
    if sizes.block_size > 16:
        return
    # A width that says that contexts could be longer than any is: more splits, the same output.
    wide = torch.nn.functional.pad(batch.block_table, (0, 3 * batch.block_table.shape[1]), value=-1)
    out = run(replace(batch, block_table=wide), poisoned(batch.q.shape, sizes.dtype, check.device))
    compare(check, f"{name} wider table", out, expected, ALLOWED[sizes.dtype])
