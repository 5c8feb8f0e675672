"""The kernels around attention against their references in float64: norms, activation, rotation and cache write,
batch-invariant product, and the device's bookkeeping, which is compared to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_checks.check import Check, Piece, poisoned, relative_error, word, worst_row
from torch import Tensor

from minivllm_kernels.linear.kernel import linear
from minivllm_kernels.linear.reference import linear_reference
from minivllm_kernels.prepare_inputs import kernel as prepare
from minivllm_kernels.prepare_inputs import reference as prepare_reference
from minivllm_kernels.rms_norm.kernel import add_rms_norm_, rms_norm
from minivllm_kernels.rms_norm.reference import rms_norm_reference
from minivllm_kernels.rotary_and_cache.kernel import rotary_and_cache_
from minivllm_kernels.rotary_and_cache.reference import rotary_and_cache_reference_
from minivllm_kernels.silu_and_mul.kernel import silu_and_mul
from minivllm_kernels.silu_and_mul.reference import silu_and_mul_reference

# Of the whole output, by dtype: about two roundings. A single row may be off by eight times that.
ALLOWED = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
ROW_FACTOR = 8
# What 8 bits lose of a Gaussian vector of 128: a step of 2 x 2.7 sigma / 254, and three bits of mantissa.
# Tokens, heads of q, heads of K and V, size of a head.
_ROTARY_SHAPES = [(1, 16, 8, 128), (300, 32, 8, 128), (8192, 32, 8, 128), (65, 28, 4, 80)]
_TINY_SHAPE = (3, 4, 2, 32)
_ALLOWED_8_BIT = {torch.int8: 1.5e-2, torch.float8_e4m3fn: 5e-2}


def pieces(check: Check) -> Iterator[Piece]:
    tiny = check.tiny
    for dtype in check.dtypes:
        kind = word(dtype)
        for rows, size in [(3, 300)] if tiny else [(1, 1024), (7, 4096), (300, 5000), (8192, 4096), (3, 16384)]:
            yield f"rms_norm {kind}: N{rows} C{size}", partial(_norm, check, dtype, rows, size)
        for rows, size in [(3, 300)] if tiny else [(1, 3072), (7, 12288), (300, 5001), (8192, 12288)]:
            yield f"silu_and_mul {kind}: N{rows} I{size}", partial(_silu, check, dtype, rows, size)
        for shape in [_TINY_SHAPE] if tiny else _ROTARY_SHAPES:
            for norm in (False, True):
                name = "N{} H{} K{} D{}".format(*shape) + (" norm" if norm else "")
                yield f"rotary_and_cache {kind}: {name}", partial(_rotary, check, dtype, shape, norm, None)
        for cache in [torch.int8] if tiny else [torch.int8, torch.float8_e4m3fn]:
            shape = _TINY_SHAPE if tiny else _ROTARY_SHAPES[1]
            name = "N{} H{} K{} D{} norm".format(*shape)
            yield f"rotary_and_cache {word(cache)}: {name} {kind}", partial(_rotary, check, dtype, shape, True, cache)
        for num_out, num_in in [(48, 64)] if tiny else [(4096, 1024), (1024, 3072), (6144, 4096), (300, 300)]:
            yield f"linear {kind}: {num_out}x{num_in}", partial(_linear, check, dtype, num_out, num_in)
    for block_size in (16,) if tiny else (16, 256):
        yield f"prepare_inputs: B{block_size}", partial(_prepare, check, block_size)


def compare(check: Check, name: str, out: Tensor, expected: Tensor, allowed: float) -> None:
    """A row for the whole, and one for the worst row where that is too far off."""
    check.within(name, relative_error(out, expected), allowed)
    if not (worst := worst_row(out, expected)) <= ROW_FACTOR * allowed:
        check.within(f"{name} worst row", worst, ROW_FACTOR * allowed)


def _norm(check: Check, dtype: torch.dtype, rows: int, size: int) -> None:
    generator, device = check.generator(size + rows), check.device
    x, residual = torch.randn((2, rows, size), generator=generator, device=device).to(dtype).unbind(0)
    weight = torch.randn(size, generator=generator, device=device).to(dtype)
    name = f"{word(dtype)}: N{rows} C{size}"
    expected = rms_norm_reference(x.double(), weight, eps=1e-6)
    compare(check, f"rms_norm {name}", rms_norm(x, weight, eps=1e-6), expected, ALLOWED[dtype])
    # The sum is rounded to the dtype before it is normed.
    total = (x.double() + residual.double()).to(dtype)
    expected = rms_norm_reference(total.double(), weight, eps=1e-6)
    compare(check, f"add_rms_norm_ {name}", add_rms_norm_(x, residual, weight, eps=1e-6), expected, ALLOWED[dtype])
    compare(check, f"add_rms_norm_ {name} residual", residual, total, ALLOWED[dtype])


def _silu(check: Check, dtype: torch.dtype, rows: int, size: int) -> None:
    x = torch.randn((rows, 2 * size), generator=check.generator(size), device=check.device).mul_(2).to(dtype)
    expected = silu_and_mul_reference(x.double())
    compare(check, f"silu_and_mul {word(dtype)}: N{rows} I{size}", silu_and_mul(x), expected, ALLOWED[dtype])


def _rotary(
    check: Check, dtype: torch.dtype, shape: tuple[int, int, int, int], norm: bool, cache_dtype: torch.dtype | None
) -> None:
    num_tokens, num_heads, num_kv_heads, head_dim = shape
    generator, device = check.generator(num_tokens), check.device
    block_size, kind = 16, cache_dtype or dtype
    qkv = torch.randn((num_tokens, (num_heads + 2 * num_kv_heads) * head_dim), generator=generator, device=device)
    qkv = qkv.to(dtype)
    positions = torch.randint(0, 4096, (num_tokens,), generator=generator, device=device)
    frequencies = 1e6 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    angles = torch.arange(4096, device=device)[:, None] * frequencies
    rotations = torch.stack([angles.cos(), angles.sin()], dim=-1).contiguous()
    weight = torch.rand((num_heads + num_kv_heads, head_dim), generator=generator, device=device).to(dtype)
    num_blocks = -(-num_tokens // block_size) + 2
    slots = torch.randperm(num_blocks * block_size, generator=generator, device=device)[:num_tokens]
    # A padding row writes nothing.
    slots[num_tokens // 2] = -1
    cache_shape = (num_blocks, block_size, 2, num_kv_heads, head_dim)
    # PyTorch fills no float8: NaN in it is 0x7f.
    eight_bit = cache_dtype is not None
    if eight_bit:
        kv_cache = torch.full(cache_shape, 0x7F, dtype=torch.int8, device=device).view(cache_dtype)
    else:
        kv_cache = poisoned(cache_shape, dtype, device)
    kv_scales = poisoned(cache_shape[:4], torch.float32, device) if eight_bit else None
    expected_qkv, expected_cache = qkv.double(), poisoned(cache_shape, torch.float64, device)
    sizes: dict[str, Any] = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim, "eps": 1e-6}
    rotary_and_cache_reference_(
        expected_qkv, positions, rotations, norm_weight=weight.double() if norm else None, kv_cache=expected_cache,
        slot_mapping=slots, **sizes,
    )  # fmt: skip
    rotary_and_cache_(
        qkv, positions, rotations, norm_weight=weight if norm else None, kv_cache=kv_cache, slot_mapping=slots,
        kv_scales=kv_scales, **sizes,
    )  # fmt: skip
    name = f"rotary_and_cache {word(kind)}: N{num_tokens} H{num_heads} K{num_kv_heads} D{head_dim}"
    name += (" norm" if norm else "") + (f" {word(dtype)}" if eight_bit else "")
    compare(check, name, qkv, expected_qkv, ALLOWED[dtype])
    real = kv_cache if kv_scales is None else kv_cache.float() * kv_scales[..., None]
    written = ~expected_cache.isnan().flatten(2).all(dim=2)
    allowed = _ALLOWED_8_BIT[kind] if eight_bit else ALLOWED[dtype]
    compare(check, f"{name} cache", real[written], expected_cache[written], allowed)
    untouched = real[~written].isnan().all().item()
    check.holds(f"{name} other slots", untouched, "a slot that is nobody's was written" if not untouched else "")


def _linear(check: Check, dtype: torch.dtype, num_out: int, num_in: int) -> None:
    """A row's bits must not depend on how many rows there are, nor on which of them it is."""
    generator, name = check.generator(num_out), f"linear {word(dtype)}: {num_out}x{num_in}"
    largest = 20 if check.tiny else 300
    x = torch.randn((largest, num_in), generator=generator, device=check.device).to(dtype)
    weight = (torch.randn((num_out, num_in), generator=generator, device=check.device) / num_in**0.5).to(dtype)
    whole = linear(x, weight)
    compare(check, name, whole, linear_reference(x.double(), weight), ALLOWED[dtype])
    for rows in (1, 7) if check.tiny else (1, 7, 64, 65, 257):
        for first in {0, largest - rows}:
            same = torch.equal(linear(x[first : first + rows].clone(), weight), whole[first : first + rows])
            check.holds(f"{name} same bits, rows {first} to {first + rows}", same)


def _prepare(check: Check, block_size: int) -> None:
    """Against the reference, which loops in Python, on the CPU."""
    device, generator = check.device, check.generator(block_size)
    num_rows, max_len, batch = (6, 50, 4) if check.tiny else (256, 2048, 200)
    columns = -(-max_len // block_size)

    def ints(high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.randint(0, high, shape, generator=generator, device=device, dtype=dtype)

    tokens, table = ints(150_000, num_rows, max_len + 1), ints(10_000, num_rows, columns)
    rows = torch.randperm(num_rows, generator=generator, device=device)[:batch].int()
    rows[batch // 2] = -1
    positions, wide = ints(max_len, batch), torch.int64
    results = []
    for module, to in ((prepare, device), (prepare_reference, torch.device("cpu"))):
        suffix = "" if module is prepare else "_reference"
        at = [tensor.to(to, copy=True) for tensor in (tokens, table, rows, positions)]
        outs = {
            "token_ids": poisoned((batch,), wide, to),
            "out_positions": poisoned((batch,), wide, to),
            "slot_mapping": poisoned((batch,), wide, to),
            "context_lens": poisoned((batch,), torch.int32, to),
            "batch_table": poisoned((batch, columns), torch.int32, to),
        }
        getattr(module, f"prepare_decode{suffix}")(*at, block_size=block_size, **outs)
        seen = torch.arange(columns) * block_size < outs["context_lens"].cpu()[:, None]
        outs["batch_table"] = outs["batch_table"].cpu().where(seen, torch.tensor(-1, dtype=torch.int32))
        packed = {"token_ids": poisoned((batch,), wide, to), "slot_mapping": poisoned((batch,), wide, to)}
        getattr(module, f"gather_tokens{suffix}")(*at[:3], at[3].long(), block_size=block_size, **packed)
        getattr(module, "store_tokens_" if module is prepare else "store_tokens_reference_")(
            at[0], at[2], at[3], at[3].long() - 3
        )
        scatter = "scatter_table_" if module is prepare else "scatter_table_reference_"
        getattr(module, scatter)(at[1], at[2], at[3] // block_size, at[3])
        gathered = {f"gather {key}": value for key, value in packed.items()}
        results.append(outs | gathered | {"store": at[0], "table": at[1]})
    for key, value in results[0].items():
        check.holds(f"prepare_inputs: B{block_size} {key}", torch.equal(value.cpu(), results[1][key].cpu()))
