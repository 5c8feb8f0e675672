"""Prefill attention against float64: whole prompts to 16k, chunks, prefix hits, mixed batches, windows, trees of
drafts, 8-bit K/V; and the same bits for a query whatever its chunk and its neighbours are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu_checks.check import Check, Piece, poisoned
from gpu_checks.elementwise import ALLOWED, compare
from gpu_checks.paged import Batch, Sizes, expected_output, make_batch, split_contexts

from minivllm_kernels.prefill_attention.kernel import prefill_attention
from minivllm_kernels.prefill_attention.tree import pack_tree_mask


def whole(length: int, **sizes: Any) -> Sizes:
    """One prompt, nothing cached."""
    return Sizes(queries=(length,), contexts=(length,), **sizes)


def pieces(check: Check) -> Iterator[Piece]:
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    if check.tiny:
        small: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "block_size": 16}
        cases = [
            Sizes(queries=(5, 1, 0, 3), contexts=(5, 20, 7, 18), **small),
            whole(20, **{**small, "dtype": full, "sliding_window": 9}),
            whole(9, **{**small, "cache_dtype": torch.int8}),
        ]
        invariant: list[tuple[Sizes, tuple[int, ...]]] = [(whole(21, **{**small, "dtype": full}), (5, 1, 15))]
        trees = [Sizes(queries=(5,), contexts=(18,), **small)]
    else:
        # Chunks of prompts, a prefix hit whose last token alone is new, decodes, a request without queries, drafts.
        mixed: dict[str, Any] = {
            "queries": (512, 1, 300, 1, 0, 5, 777),
            "contexts": (4096, 2049, 300, 1024, 64, 1000, 8000),
        }
        cases = [Sizes(**mixed, dtype=dtype, block_size=size) for dtype in check.dtypes for size in (16, 64, 256)]
        cases += [whole(length, dtype=dtype) for length in (2048, 4097, 8192) for dtype in (half, brain)]
        cases += [whole(16384, dtype=brain), whole(2049, dtype=full, block_size=16)]
        for head_dim in (64, 80, 256):
            cases += [Sizes(**mixed, dtype=dtype, head_dim=head_dim, block_size=16) for dtype in (half, brain)]
        for group in (1, 4, 7, 8):
            cases += [
                Sizes(**mixed, dtype=dtype, num_heads=4 * group, num_kv_heads=4, block_size=64)
                for dtype in (half, brain)
            ]
        cases += [Sizes(**mixed, dtype=full, num_heads=28, num_kv_heads=4, block_size=64)]
        for window in (1, 100, 1024):
            cases += [Sizes(**mixed, dtype=brain, sliding_window=window, block_size=size) for size in (16, 256)]
        for cache_dtype in (torch.int8, torch.float8_e4m3fn):
            cases += [Sizes(**mixed, dtype=dtype, cache_dtype=cache_dtype, block_size=64) for dtype in (half, brain)]
        for queries in (2, 5, 9, 17, 33):
            cases.append(
                Sizes(queries=(queries,) * 32, contexts=tuple(range(100, 1700, 50)), dtype=brain, block_size=16)
            )
        invariant = [
            (whole(1500, dtype=dtype, num_heads=8 * group, head_dim=size), (700, 1, 64, 3, 732))
            for dtype, group, size in ((brain, 2, 128), (half, 4, 128), (full, 2, 64), (brain, 7, 80))
        ]
        trees = [
            Sizes(queries=(16,) * 8, contexts=tuple(range(300, 1100, 100)), dtype=dtype) for dtype in (half, brain)
        ]
    for sizes in cases:
        yield f"prefill_attention {sizes.kind}: {name_of(sizes)}", partial(_check, check, sizes)
    for sizes in trees:
        yield f"prefill_attention {sizes.kind} tree: {name_of(sizes)}", partial(_check_tree, check, sizes)
    for sizes, chunks in invariant:
        name = f"prefill_attention {sizes.kind} invariance: {name_of(sizes)}"
        yield name, partial(_check_invariance, check, name, sizes, chunks)


def name_of(sizes: Sizes) -> str:
    if sizes.queries == sizes.contexts:
        words = f"whole {','.join(map(str, sizes.queries))}"
    elif len(set(sizes.queries)) == 1:
        words = f"R{len(sizes.queries)} with {sizes.queries[0]} queries"
    else:
        words = f"mixed R{len(sizes.queries)} N{sum(sizes.queries)}"
    return (
        f"{words} H{sizes.num_heads} K{sizes.num_kv_heads} D{sizes.head_dim} B{sizes.block_size}"
        + (f" window {sizes.sliding_window}" if sizes.sliding_window else "")
        + (f" {str(sizes.dtype).removeprefix('torch.')}" if sizes.cache_dtype else "")
    )


def run(batch: Batch, out: torch.Tensor, **options: Any) -> torch.Tensor:
    return prefill_attention(
        batch.q, batch.kv_cache, batch.block_table, batch.cu_seqlens_q, batch.context_lens,
        max_query_len=max(batch.sizes.queries), scale=batch.sizes.scale, sliding_window=batch.sizes.sliding_window,
        kv_scales=batch.kv_scales, out=out, **options,
    )  # fmt: skip


def _check(check: Check, sizes: Sizes) -> None:
    batch = make_batch(sizes, check.device, check.generator(sum(sizes.queries)), extra_queries=3)
    out = run(batch, poisoned(batch.q.shape, sizes.dtype, check.device))
    mine = sum(sizes.queries)
    name = f"prefill_attention {sizes.kind}: {name_of(sizes)}"
    compare(check, name, out[:mine], expected_output(batch)[:mine], ALLOWED[sizes.dtype])


def _check_tree(check: Check, sizes: Sizes) -> None:
    """Drafts that see some of the drafts before them, and themselves."""
    generator, most = check.generator(3), max(sizes.queries)
    batch = make_batch(sizes, check.device, generator)
    mask = torch.rand((sum(sizes.queries), most), generator=generator, device=check.device) < 0.5
    own = torch.cat([torch.arange(count) for count in sizes.queries]).to(check.device)
    mask &= torch.arange(most, device=check.device) <= own[:, None]
    mask |= torch.arange(most, device=check.device) == own[:, None]
    out = run(batch, poisoned(batch.q.shape, sizes.dtype, check.device), tree_mask=pack_tree_mask(mask))
    name = f"prefill_attention {sizes.kind} tree: {name_of(sizes)}"
    compare(check, name, out, expected_output(batch, mask), ALLOWED[sizes.dtype])


def _check_invariance(check: Check, name: str, sizes: Sizes, chunks: tuple[int, ...]) -> None:
    """A prompt whole, in chunks, and token by token at its end, alone and beside others."""
    batch = make_batch(sizes, check.device, check.generator(5))
    out = run(batch, torch.empty_like(batch.q, memory_format=torch.contiguous_format))

    def part(piece: Sizes) -> Batch:
        """Its K/V lies in the whole prompt's blocks; later tokens are there as well, and not to be seen."""
        end, count = piece.contexts[0], piece.queries[0]
        return replace(
            batch,
            sizes=piece,
            q=batch.q[end - count : end],
            cu_seqlens_q=torch.tensor([0, count], dtype=torch.int32, device=check.device),
            context_lens=torch.tensor([end], dtype=torch.int32, device=check.device),
        )

    last = [replace(sizes, queries=(1,), contexts=(end,)) for end in (1, sizes.contexts[0] - 1, sizes.contexts[0])]
    for piece in [*split_contexts(sizes, chunks), *last]:
        end, count = piece.contexts[0], piece.queries[0]
        got = run(part(piece), poisoned((count, *batch.q.shape[1:]), sizes.dtype, check.device))
        check.holds(f"{name} queries {end - count} to {end}", torch.equal(got, out[end - count : end]))

    # Beside short requests that read the first block of its own: what they compute does not matter here.
    count, before = 37 if not check.tiny else 3, 2
    beside = replace(
        batch,
        sizes=replace(sizes, queries=(5, count, 1), contexts=(5, sizes.contexts[0], 4)),
        q=torch.cat([batch.q[:5], batch.q[-count:], batch.q[3:4]]),
        block_table=batch.block_table.repeat(3, 1),
        cu_seqlens_q=torch.tensor([0, 5, 5 + count, 6 + count], dtype=torch.int32, device=check.device),
        context_lens=torch.tensor([5, sizes.contexts[0], 4], dtype=torch.int32, device=check.device),
    )
    got = run(beside, poisoned(beside.q.shape, sizes.dtype, check.device))
    check.holds(f"{name} {count} queries beside {before} requests", torch.equal(got[5 : 5 + count], out[-count:]))
