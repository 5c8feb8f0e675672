"""Kernels against their floors, each in a CUDA graph over inputs several times the L2: attention first, then what
surrounds it. What is timed is compared with float64 on the very inputs first."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_checks import decode, prefill
from gpu_checks.check import Check, Piece, relative_error
from gpu_checks.elementwise import ALLOWED
from gpu_checks.models import SHAPES, TINY
from gpu_checks.paged import Batch, Sizes, expected_output, make_batch
from gpu_checks.timing import graph_ms, num_sets
from torch.nn.attention import SDPBackend, sdpa_kernel

from minivllm_kernels.paged_attention.kernel import paged_decode
from minivllm_kernels.rms_norm.kernel import add_rms_norm_
from minivllm_kernels.rotary_and_cache.kernel import rotary_and_cache_
from minivllm_kernels.sample.kernel import argmax
from minivllm_kernels.silu_and_mul.kernel import silu_and_mul

# (requests, context): milliseconds aimed at, and what the best small engine takes on an H200.
_DECODE = {(32, 2048): (0.075, 0.160), (8, 2048): (0.022, 0.094), (32, 512): (0.022, 0.044), (1, 2048): (0.012, 0.068)}
_PREFILL_TFLOPS = 480.0
_OF_SDPA = 0.8


def pieces(check: Check) -> Iterator[Piece]:
    tiny = check.tiny
    small = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "block_size": 16} if tiny else {}
    for (rows, context), (aim, best) in ({(2, 33): (1.0, 1.0)} if tiny else _DECODE).items():
        sizes = decode.batch_of((context,) * rows, **small)
        yield f"paged_decode float16: time {rows}x{context}", partial(_decode, check, sizes, aim, f"{best} ms")
    if not tiny:
        for dtype, cache, heads, block in (
            (torch.bfloat16, None, 32, 256), (torch.bfloat16, None, 32, 16), (torch.float16, torch.int8, 16, 256),
            (torch.bfloat16, torch.float8_e4m3fn, 32, 256),
        ):  # fmt: skip
            sizes = decode.batch_of((1024,) * 64, dtype=dtype, cache_dtype=cache, num_heads=heads, block_size=block)
            yield f"paged_decode {sizes.kind}: time", partial(_decode, check, sizes, None, "")
    for length in (20,) if tiny else (2048, 4096, 8192, 16384):
        for dtype in (torch.float16,) if tiny else (torch.bfloat16, torch.float16):
            sizes = prefill.whole(length, dtype=dtype, **small)
            yield f"prefill_attention {sizes.kind}: time {length}", partial(_prefill, check, sizes)
    for rows in (2,) if tiny else (1, 64, 8192):
        yield f"small kernels: N{rows}", partial(_small, check, rows)


def check_first(check: Check, subject: str, batch: Batch, run: Callable[..., Any]) -> bool:
    """Whether these inputs may be timed: earlier checks passed, and so does this output."""
    if not check.may_time(subject):
        return False
    error = relative_error(run(batch, torch.full_like(batch.q.contiguous(), float("nan"))), expected_output(batch))
    allowed = ALLOWED[batch.sizes.dtype]
    if not error <= allowed:
        check.within(f"{subject}: timed inputs", error, allowed, detail="not timed: this output is wrong")
    return error <= allowed


def shared_counters(sizes: Sizes, device: torch.device) -> dict[str, torch.Tensor]:
    """What an engine makes once for all layers, if the kernel merges by counting."""
    if "counters" not in inspect.signature(paged_decode).parameters:
        return {}
    size = len(sizes.contexts) * sizes.num_kv_heads
    return {"counters": torch.zeros(size, dtype=torch.int32, device=device)}


def decode_batches(check: Check, sizes: Sizes) -> list[Batch]:
    """So many that their K/V is several times the L2."""
    generator = check.generator(1)
    return [make_batch(sizes, check.device, generator) for _ in range(num_sets(check, sizes.kv_bytes))]


def _decode(check: Check, sizes: Sizes, aim: float | None, reference: str) -> None:
    batches = decode_batches(check, sizes)
    subject = f"paged_decode {sizes.kind}"
    if not check_first(check, subject, batches[0], decode.run):
        return
    out = torch.empty_like(batches[0].q, memory_format=torch.contiguous_format)
    counters = shared_counters(sizes, check.device)
    time_ms = graph_ms(check, [partial(decode.run, batch, out, **counters) for batch in batches])
    check.figure(
        f"{subject}: {decode.name_of(sizes)}", time_ms, "ms", floor=check.bytes_ms(sizes.kv_bytes), aim=aim,
        reference=reference, detail="a launch in a CUDA graph",
    )  # fmt: skip


def _prefill(check: Check, sizes: Sizes) -> None:
    subject, length = f"prefill_attention {sizes.kind}", sizes.queries[0]
    generator = check.generator(2)
    batches = [make_batch(sizes, check.device, generator) for _ in range(1 if check.tiny else 2)]
    if not check_first(check, subject, batches[0], prefill.run):
        return
    out = torch.empty_like(batches[0].q, memory_format=torch.contiguous_format)
    launches = 4 if length >= 8192 else 40
    time_ms = graph_ms(check, [partial(prefill.run, batch, out) for batch in batches], at_least=launches)
    peak = None if check.peaks is None else check.peaks.flops[sizes.kind] / 1e12
    sdpa_ms = graph_ms(check, [_sdpa(batch) for batch in batches], at_least=launches)
    name = f"{subject}: causal {length}"
    tflops = sdpa = ratio = None
    if time_ms is not None and sdpa_ms is not None:
        tflops, sdpa = (sizes.causal_flops / ms / 1e9 for ms in (time_ms, sdpa_ms))
        ratio = tflops / sdpa
    check.figure(f"{name} alone", tflops, "TFLOP/s", floor=peak, aim=_PREFILL_TFLOPS, reference="Triton FA2 434-477")
    check.figure(f"{name} of torch's flash", ratio, "x", aim=_OF_SDPA, detail=f"torch: {sdpa or 0:.0f} TFLOP/s")


def _sdpa(batch: Batch) -> Callable[[], torch.Tensor]:
    """PyTorch's flash attention on the same shape, its K and V contiguous."""
    sizes, device = batch.sizes, batch.q.device
    length = sizes.queries[0]
    q = batch.q.transpose(0, 1)[None].contiguous()
    k, v = torch.randn((2, 1, sizes.num_kv_heads, length, sizes.head_dim), device=device).to(sizes.dtype).unbind(0)

    def launch() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def on_a_cpu() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return launch if device.type == "cuda" else on_a_cpu


def _small(check: Check, rows: int) -> None:
    """What runs between the products of a Qwen3-8B layer, and the argmax of its head."""
    shape = SHAPES["Qwen3-8B"] | (TINY if check.tiny else {})
    hidden, inner, size, vocab = (shape[k] for k in ("hidden_size", "intermediate_size", "head_dim", "vocab_size"))
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    dtype, device = torch.float16 if check.tiny else torch.bfloat16, check.device
    kind, width = str(dtype).removeprefix("torch."), (heads + 2 * kv_heads) * size

    def several(num_bytes: int, make: Callable[[], tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [make() for _ in range(num_sets(check, num_bytes, most=16))]

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def time(subject: str, num_bytes: int, launches: list[Callable[[], object]]) -> None:
        if check.may_time(f"{subject} {kind}"):
            value = graph_ms(check, launches)
            name, value_us = f"{subject} {kind}: N{rows}", None if value is None else value * 1e3
            floor = check.copy_ms(num_bytes)
            check.figure(name, value_us, "us", floor=None if floor is None else floor * 1e3, detail="Qwen3-8B's sizes")

    weight, item = randn(hidden), dtype.itemsize
    sets = several(4 * rows * hidden * item, lambda: (randn(rows, hidden), randn(rows, hidden)))
    launches: list[Callable[[], object]]
    launches = [partial(add_rms_norm_, x, residual, weight, eps=1e-6) for x, residual in sets]
    time("add_rms_norm_", 4 * rows * hidden * item, launches)

    sets = several(3 * rows * inner * item, lambda: (randn(rows, 2 * inner),))
    time("silu_and_mul", 3 * rows * inner * item, [partial(silu_and_mul, *one) for one in sets])

    blocks = -(-rows // 256) + 1
    sets = several(2 * rows * width * item, lambda: (randn(rows, width), randn(blocks, 256, 2, kv_heads, size)))
    rotations = torch.rand((4096, size // 2, 2), device=device)
    places, norm = torch.arange(rows, device=device), randn(heads + kv_heads, size)
    launches = [
        partial(
            rotary_and_cache_, qkv, places % 4096, rotations, num_heads=heads, num_kv_heads=kv_heads, head_dim=size,
            norm_weight=norm, eps=1e-6, kv_cache=cache, slot_mapping=places,
        )
        for qkv, cache in sets
    ]  # fmt: skip
    # q and k are read and written, v read; k and v are written to the cache.
    moved = rows * size * item * (2 * (heads + kv_heads) + kv_heads + 2 * kv_heads)
    time("rotary_and_cache", moved, launches)
    if rows <= 256:
        sets = several(rows * vocab * item, lambda: (randn(rows, vocab),))
        out = torch.empty(rows, dtype=torch.int64, device=device)
        time("argmax", rows * vocab * item, [partial(argmax, *one, out_tokens=out) for one in sets])
