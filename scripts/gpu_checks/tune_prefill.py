"""Prefill attention over tiles, warps, stages and overlap, whole prompts and chunks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from gpu_checks import prefill
from gpu_checks.check import Check, Piece
from gpu_checks.paged import Sizes, make_batch
from gpu_checks.speed import check_first
from gpu_checks.timing import graph_ms

from minivllm_kernels.prefill_attention.config import PrefillConfig


def pieces(check: Check) -> Iterator[Piece]:
    if check.tiny:
        yield (
            "tune prefill_attention 20",
            partial(_tiles, check, "20", prefill.whole(20, num_heads=4, num_kv_heads=2, head_dim=32, block_size=16)),
        )
        return
    for length in (8192, 2048):
        yield (
            f"tune prefill_attention {length}",
            partial(_tiles, check, str(length), prefill.whole(length, dtype=torch.bfloat16, num_heads=32)),
        )
    chunk = Sizes(queries=(512,) * 4, contexts=(4096,) * 4, dtype=torch.bfloat16, num_heads=32)
    yield "tune prefill_attention chunk", partial(_tiles, check, "4 chunks of 512 at 4096", chunk)
    drafts = Sizes(queries=(5,) * 32, contexts=(1024,) * 32, dtype=torch.bfloat16, num_heads=32)
    yield "tune prefill_attention drafts", partial(_tiles, check, "5 queries of 32 at 1024", drafts)


def variants(tiny: bool, short: bool) -> Iterator[PrefillConfig]:
    """Tiles as wide as the queries make sense of."""
    if tiny:
        shapes = [(16, 4)]
    else:
        shapes = [(16, 4), (32, 4), (64, 4)] if short else [(64, 4), (128, 4), (128, 8)]
    keys, stages = ((16,), (2,)) if tiny else ((32, 64, 128), (2, 3, 4))
    overlaps = (False,) if tiny or short else (False, True)
    for (block_m, num_warps), block_n, num_stages, overlap in product(shapes, keys, stages, overlaps):
        yield PrefillConfig(
            block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages, overlap=overlap
        )


def _tiles(check: Check, words: str, sizes: Sizes) -> None:
    generator = check.generator(4)
    batches = [make_batch(sizes, check.device, generator) for _ in range(1 if check.tiny else 2)]
    if not check_first(check, f"prefill_attention {sizes.kind}", batches[0], prefill.run):
        return
    out = torch.empty_like(batches[0].q, memory_format=torch.contiguous_format)
    peak = None if check.peaks is None else check.peaks.flops[sizes.kind] / 1e12
    for config in (None, *variants(check.tiny, short=max(sizes.queries) < 64)):
        name = "default"
        if config is not None:
            name = f"M{config.block_m} N{config.block_n} warps {config.num_warps} stages {config.num_stages}"
            name += " overlap" if config.overlap else ""
        launches = [partial(prefill.run, batch, out, config=config) for batch in batches]
        try:
            time_ms = graph_ms(check, launches, at_least=4, replays=5)
        except Exception as error:
            # Triton's own words where a tile does not fit.
            if "out of resource" not in str(error):
                raise
            continue
        value = None if time_ms is None else sizes.causal_flops / time_ms / 1e9
        detail = "" if time_ms is None else f"{time_ms:.4g} ms"
        check.figure(f"tune prefill_attention {words}: {name}", value, "TFLOP/s", floor=peak, detail=detail)
