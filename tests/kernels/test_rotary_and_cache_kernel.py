"""Norm, rotation and cache write in Triton against their definition, and the definition against its parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from minivllm_kernels.rms_norm.reference import rms_norm_reference
from minivllm_kernels.rotary.reference import rotary_reference
from minivllm_kernels.rotary_and_cache import kernel
from minivllm_kernels.rotary_and_cache.kernel import rotary_and_cache_
from minivllm_kernels.rotary_and_cache.reference import quantize_reference, rotary_and_cache_reference_

MAX_LEN = 50
# Where a GPU is, it is what runs them, and bfloat16 with it, which Triton's interpreter gets wrong.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]


@pytest.fixture(autouse=True, scope="module")
def _on_the_device() -> Iterator[None]:
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)


@dataclass
class Case:
    """One call's tensors, made anew for each implementation, and what they have become."""

    qkv: Tensor
    kv_cache: Tensor | None
    kv_scales: Tensor | None

    def cached(self, slot: int) -> tuple[Tensor, Tensor | None]:
        assert self.kv_cache is not None
        place = divmod(slot, self.kv_cache.shape[1])
        return self.kv_cache[place], None if self.kv_scales is None else self.kv_scales[place]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(DEVICE)


def _rotations(size: int) -> tuple[Tensor, Tensor]:
    """inv_freq [D / 2] and the table [MAX_LEN, D / 2, 2]."""
    inv_freq = 100.0 ** -(torch.arange(size // 2) / (size // 2))
    angles = torch.arange(MAX_LEN)[:, None] * inv_freq
    return inv_freq, torch.stack([angles.cos(), angles.sin()], dim=-1)


def _poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype is torch.int8:
        return torch.full(shape, -99, dtype=dtype)
    return torch.full(shape, float("nan")).to(dtype)


def _run(
    function: Callable[..., None],
    num_tokens: int,
    heads: int,
    kv_heads: int,
    size: int,
    *,
    dtype: torch.dtype = torch.float32,
    norm: bool = False,
    cache: torch.dtype | None = None,
    block_size: int = 4,
    slots: list[int] | None = None,
    scale: float = 1.0,
    first: int = 0,
    values: Tensor | None = None,
    stride: int = 7,
) -> Case:
    """Tokens `[first, num_tokens)` of a case that its numbers name, at positions `stride` apart."""
    row = (heads + 2 * kv_heads) * size
    # A row stands inside of a wider one, as nothing demands the opposite.
    qkv = torch.full((num_tokens, row + 16), float("nan"), dtype=dtype)[:, :row]
    qkv.copy_(_random(num_tokens, row) * scale if values is None else values)
    case = Case(qkv[first:], None, None)
    options: dict[str, Any] = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": size}
    if norm:
        options |= {"norm_weight": (1 + 0.3 * _random(heads + kv_heads, size, seed=1)).to(dtype), "eps": 1e-5}
    if slots is not None:
        shape = (max([*slots, 0]) // block_size + 2, block_size, 2, kv_heads, size)
        # A layer of a pool: blocks do not follow each other.
        case.kv_cache = _poisoned((shape[0], 2, *shape[1:]), cache or dtype)[:, 1]
        if cache is not None:
            case.kv_scales = torch.full(shape[:-1], float("nan"))
        options |= {"kv_cache": case.kv_cache, "kv_scales": case.kv_scales}
        options |= {"slot_mapping": torch.tensor(slots[first:], dtype=torch.int64)}
    positions = torch.arange(num_tokens) * stride % MAX_LEN
    if function is rotary_and_cache_reference_:
        case.qkv = case.qkv.contiguous()
    function(case.qkv, positions[first:], _rotations(size)[1], **options)
    return case


def _assert_same(got: Case, wanted: Case, kv_size: int) -> None:
    tolerance = 2e-6 if wanted.qkv.dtype is torch.float32 else 2 * torch.finfo(wanted.qkv.dtype).eps
    torch.testing.assert_close(got.qkv, wanted.qkv, rtol=tolerance, atol=2 * tolerance)
    assert torch.equal(got.qkv[:, -kv_size:], wanted.qkv[:, -kv_size:]), "v was touched"


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 128).map(lambda half: 2 * half) | st.sampled_from([32, 64, 80, 96, 128, 256]),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_rotation_alone_is_as_defined(
    num_tokens: int, group: int, kv_heads: int, size: int, dtype: torch.dtype, norm: bool
) -> None:
    case = (num_tokens, group * kv_heads, kv_heads, size)
    got, wanted = (
        _run(function, *case, dtype=dtype, norm=norm) for function in (rotary_and_cache_, rotary_and_cache_reference_)
    )
    _assert_same(got, wanted, kv_heads * size)


def test_the_norm_is_rounded_on_both_sides_of_its_weight() -> None:
    # A rounding left out shows in more than a tenth of the values.
    got, wanted = (
        _run(function, 4, 8, 2, 64, dtype=torch.float16, norm=True)
        for function in (rotary_and_cache_, rotary_and_cache_reference_)
    )
    assert (got.qkv == wanted.qkv).float().mean() > 0.98


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-1, 40), min_size=1, max_size=5, unique=True),
    st.sampled_from([(1, 1), (7, 1), (6, 3), (4, 4)]),
    st.sampled_from([32, 80, 128, 34]),
    st.sampled_from([1, 4, 16]),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_keys_and_values_are_cached_bit_by_bit_and_nothing_else_is(
    slots: list[int], heads: tuple[int, int], size: int, block_size: int, dtype: torch.dtype, norm: bool
) -> None:
    got, wanted = (
        _run(function, len(slots), *heads, size, dtype=dtype, norm=norm, slots=slots, block_size=block_size)
        for function in (rotary_and_cache_, rotary_and_cache_reference_)
    )
    kv_heads = heads[1]
    _assert_same(got, wanted, kv_heads * size)
    assert got.kv_cache is not None
    for token, slot in enumerate(slots):
        if slot >= 0:
            kv = got.qkv[token].view(-1, size)[heads[0] :].view(2, kv_heads, size)
            assert torch.equal(got.cached(slot)[0], kv)
            got.cached(slot)[0].fill_(float("nan"))
    assert got.kv_cache.isnan().all()


def _assert_quantized(got: Case, slots: list[int], size: int) -> None:
    """Of 6 + 3 + 3 heads: the slots hold what k and v of qkv become, no other was written."""
    assert got.kv_cache is not None and got.kv_scales is not None
    cache = got.kv_cache.dtype
    for token, slot in enumerate(slots):
        if slot < 0:
            continue
        kv = got.qkv[token].view(-1, size)[6:].view(2, 3, size)
        stored, scales = quantize_reference(kv, cache)
        at, at_scales = got.cached(slot)
        assert at_scales is not None
        assert torch.equal(at.float(), stored.float()) and torch.equal(at_scales, scales)
        at.copy_(_poisoned(tuple(at.shape), cache))
        at_scales.fill_(float("nan"))
    assert got.kv_scales.isnan().all()
    assert (got.kv_cache == -99).all() if cache is torch.int8 else got.kv_cache.float().isnan().all()


@pytest.mark.parametrize("size", [32, 80])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 300.0, 0.0])
def test_int8_vectors_and_their_scales_are_as_defined(size: int, dtype: torch.dtype, scale: float) -> None:
    slots = [9, -1, 0, 6]
    norm = scale == 1
    got, wanted = (
        _run(function, 4, 6, 3, size, dtype=dtype, norm=norm, cache=torch.int8, slots=slots, scale=scale)
        for function in (rotary_and_cache_, rotary_and_cache_reference_)
    )
    assert wanted.kv_cache is not None and got.kv_cache is not None
    # The rotation may round its last place otherwise, and a value between two steps then falls to the other.
    assert ((got.kv_cache.int() - wanted.kv_cache.int()).abs() <= 1).all()
    torch.testing.assert_close(got.kv_scales, wanted.kv_scales, equal_nan=True, rtol=2 * torch.finfo(dtype).eps, atol=0)
    _assert_quantized(got, slots, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fp8_vectors_and_their_scales_are_as_defined(dtype: torch.dtype) -> None:
    # Triton's interpreter rounds 1.99 to 1 where it casts to this type (a carry into the exponent is lost), so every
    # value has its place in the type once its scale is taken out, and nothing is turned.
    slots, size = [9, -1, 0, 6], 32
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    drawn = torch.randint(len(every), (4, 12, size), generator=torch.Generator(DEVICE).manual_seed(0))
    values = every[drawn] * torch.tensor([0.5, 1.0, 2.0])[torch.arange(12) % 3][:, None]
    values[:, :, 5] = torch.tensor([224.0, -448.0, 896.0])[torch.arange(12) % 3]
    values[0, 7] = 0
    got = _run(
        rotary_and_cache_, 4, 6, 3, size, dtype=dtype, cache=torch.float8_e4m3fn, slots=slots, values=values.flatten(1),
        stride=0,
    )  # fmt: skip
    scales = got.cached(9)[1]
    assert scales is not None and scales.tolist() == [[0.5, 0.0, 2.0], [0.5, 1.0, 2.0]]
    _assert_quantized(got, slots, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neither_the_tile_nor_the_batch_changes_a_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(first: int = 0) -> Case:
        return _run(rotary_and_cache_, 5, 14, 2, 96, dtype=dtype, norm=True, slots=[3, 1, 4, -1, 5], first=first)

    whole, last = run(), run(first=4)
    assert torch.equal(last.qkv[0], whole.qkv[4]) and torch.equal(last.cached(5)[0], whole.cached(5)[0])
    monkeypatch.setattr(kernel, "_tile", lambda num_rows, head_dim: (128, 16))
    wide = run()
    assert torch.equal(wide.qkv, whole.qkv)
    assert wide.kv_cache is not None and whole.kv_cache is not None
    torch.testing.assert_close(wide.kv_cache, whole.kv_cache, equal_nan=True, rtol=0, atol=0)


def test_only_sizes_choose_the_tile_and_large_batches_take_the_wide_one() -> None:
    assert kernel._tile(1, 80) == (128, 8) and kernel._tile(8192 * 32, 80) == (128, 16)


def test_no_tokens_are_nothing() -> None:
    _run(rotary_and_cache_, 0, 2, 1, 32, slots=[])


def test_the_definition_is_made_of_the_norms_and_the_rotations() -> None:
    heads, kv_heads, size, num_tokens = 4, 2, 24, 3
    got = _run(rotary_and_cache_reference_, num_tokens, heads, kv_heads, size, norm=True)
    x = _random(num_tokens, (heads + 2 * kv_heads) * size).view(num_tokens, -1, size)[:, : heads + kv_heads]
    weight = 1 + 0.3 * _random(heads + kv_heads, size, seed=1)
    normed = torch.stack([rms_norm_reference(x[:, h], weight[h], eps=1e-5) for h in range(heads + kv_heads)], dim=1)
    apart = torch.cat([normed[..., 0::2], normed[..., 1::2]], dim=-1)
    turned = rotary_reference(apart, torch.arange(num_tokens) * 7 % MAX_LEN, _rotations(size)[0])
    together = torch.stack([turned[..., : size // 2], turned[..., size // 2 :]], dim=-1).flatten(2)
    torch.testing.assert_close(
        got.qkv.view(num_tokens, -1, size)[:, : heads + kv_heads], together, rtol=1e-5, atol=2e-6
    )


def test_a_vector_is_quantized_by_hand() -> None:
    stored, scale = quantize_reference(torch.tensor([[-254.0, 3.0, 5.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), torch.int8)
    # Halves round to even.
    assert scale.tolist() == [2.0, 0.0] and stored.tolist() == [[-127, 2, 2, 0], [0, 0, 0, 0]]
    stored, scale = quantize_reference(torch.tensor([896.0, -2.0]), torch.float8_e4m3fn)
    assert scale.item() == 2.0 and stored.tolist() == [448.0, -1.0]
