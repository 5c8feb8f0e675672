"""Decode attention over tiles, warps, stages and splits, and over block sizes: what a better default would be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from gpu_checks import decode
from gpu_checks.check import Check, Piece
from gpu_checks.paged import Sizes
from gpu_checks.speed import check_first, decode_batches, shared_counters
from gpu_checks.timing import graph_ms

from minivllm_kernels.paged_attention.decode_config import DecodeConfig

_SHAPES = ((32, 2048), (8, 2048), (32, 512), (1, 2048))


def pieces(check: Check) -> Iterator[Piece]:
    small = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "block_size": 16} if check.tiny else {}
    for rows, context in ((2, 33),) if check.tiny else _SHAPES:
        sizes = decode.batch_of((context,) * rows, **small)
        yield f"tune paged_decode {rows}x{context}: tiles and splits", partial(_tiles, check, sizes)
    for rows, context in ((2, 33),) if check.tiny else ((32, 2048), (256, 1024), (1, 2048)):
        for dtype in (torch.float16,) if check.tiny else (torch.float16, torch.bfloat16):
            sizes = decode.batch_of((context,) * rows, dtype=dtype, **small)
            yield f"tune paged_decode {rows}x{context}: blocks {sizes.kind}", partial(_blocks, check, sizes)


def variants(tiny: bool) -> Iterator[DecodeConfig]:
    """Tiles by splits; how a context is split needs no new code, so there are many of these."""
    tiles = product((16,), (4,), (2,)) if tiny else product((32, 64, 128), (2, 4, 8), (2, 3, 4))
    for block_n, num_warps, num_stages in tiles:
        for splits in (1, 2) if tiny else (1, 2, 3, 4, 8, 16, 32):
            yield DecodeConfig(
                block_n=block_n, num_warps=num_warps, num_stages=num_stages, num_splits=splits, even_splits=splits,
                min_split_size=block_n, max_split_size=1 << 20,
            )  # fmt: skip


def _tiles(check: Check, sizes: Sizes) -> None:
    batches = decode_batches(check, sizes)
    if not check_first(check, f"paged_decode {sizes.kind}", batches[0], decode.run):
        return
    out = torch.empty_like(batches[0].q, memory_format=torch.contiguous_format)
    counters = shared_counters(sizes, check.device)
    subject = f"tune paged_decode {len(sizes.contexts)}x{sizes.contexts[0]}"
    for config in (None, *variants(check.tiny)):
        name = "default"
        if config is not None:
            # More programs than any GPU holds at once read nothing sooner.
            pairs = len(sizes.contexts) * sizes.num_kv_heads
            if config.num_splits > 1 and pairs * config.num_splits > 132 * 8:
                continue
            name = f"N{config.block_n} warps {config.num_warps} stages {config.num_stages} splits {config.num_splits}"
        launches = [partial(decode.run, batch, out, config=config, **counters) for batch in batches]
        try:
            time_ms = graph_ms(check, launches, replays=5)
        except Exception as error:
            # Triton's own words where a tile does not fit.
            if "out of resource" not in str(error):
                raise
            continue
        check.figure(f"{subject}: {name}", time_ms, "ms", floor=check.bytes_ms(sizes.kv_bytes))


def _blocks(check: Check, sizes: Sizes) -> None:
    words = f"{sizes.kind} {len(sizes.contexts)}x{sizes.contexts[0]}"
    for block_size in (16, 32) if check.tiny else (16, 32, 64, 128, 256):
        blocked = replace(sizes, block_size=block_size)
        batches = decode_batches(check, blocked)
        if not check_first(check, f"paged_decode {sizes.kind}", batches[0], decode.run):
            return
        out = torch.empty_like(batches[0].q, memory_format=torch.contiguous_format)
        counters = shared_counters(blocked, check.device)
        time_ms = graph_ms(check, [partial(decode.run, batch, out, **counters) for batch in batches])
        check.figure(
            f"tune paged_decode blocks {words}: B{block_size}", time_ms, "ms",
            floor=check.bytes_ms(sizes.kv_bytes),
        )  # fmt: skip
