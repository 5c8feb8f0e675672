"""RMSNorm in Triton against its definition."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from minivllm_kernels.rms_norm.kernel import MAX_SIZE, add_rms_norm_, rms_norm
from minivllm_kernels.rms_norm.reference import rms_norm_reference

EPS = 1e-5
# Where a GPU is, it is what runs them, and bfloat16 with it, which Triton's interpreter gets wrong.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]


@pytest.fixture(autouse=True, scope="module")
def _new_memory_is_nan() -> Iterator[None]:
    torch.set_default_device(DEVICE)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_device(None)


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    draws = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=draws, device="cpu").to(DEVICE, dtype)


def _between_poison(x: Tensor) -> Tensor:
    """The same rows, as part of wider ones whose other features are NaN."""
    wide = torch.full((x.shape[0], x.shape[1] + 32), float("nan"), dtype=x.dtype)
    wide[:, 16:-16] = x
    return wide[:, 16:-16]


def _wanted(x: Tensor, weight: Tensor) -> Tensor:
    """With Hugging Face's rounding before the weight."""
    return rms_norm_reference(x, torch.ones_like(weight), eps=EPS) * weight


def _assert_close(got: Tensor, wanted: Tensor) -> None:
    # Half precision: the last place of the normalised value may fall the other way, and again that of the product.
    tolerance = 2e-6 if wanted.dtype is torch.float32 else 2 * torch.finfo(wanted.dtype).eps
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=1e-7)


def test_new_memory_is_poisoned() -> None:
    assert torch.empty(3).isnan().all()


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 700), st.sampled_from([1.0, 1e-3, 1e2, 0.0]), st.sampled_from(DTYPES))
def test_rms_norm_is_its_definition(num_rows: int, size: int, scale: float, dtype: torch.dtype) -> None:
    x = _between_poison((_random(num_rows, size) * scale).to(dtype))
    weight = 1 + 0.3 * _random(size, seed=1, dtype=dtype)
    got = rms_norm(x, weight, eps=EPS)
    assert got.dtype is dtype and got.is_contiguous()
    _assert_close(got, _wanted(x, weight))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 700), st.sampled_from(DTYPES))
def test_the_sum_is_rounded_into_the_residual_and_normed_from_there(
    num_rows: int, size: int, dtype: torch.dtype
) -> None:
    x, before = _random(num_rows, size, dtype=dtype), _random(num_rows, size, seed=1, dtype=dtype)
    residual, weight = _between_poison(before), 1 + 0.3 * _random(size, seed=2, dtype=dtype)
    x_before = x.clone()
    got = add_rms_norm_(x, residual, weight, eps=EPS)
    assert torch.equal(residual, before + x) and torch.equal(x, x_before)
    _assert_close(got, _wanted(residual, weight))


def test_half_precision_is_rounded_where_hugging_face_rounds_it() -> None:
    # A rounding left out, of the sum or before the weight, shows in more than a tenth of the values.
    x, residual = _random(2, 4000, dtype=torch.float16), _random(2, 4000, seed=1, dtype=torch.float16)
    weight = 1 + 0.3 * _random(4000, seed=2, dtype=torch.float16)
    got = add_rms_norm_(x, residual, weight, eps=EPS)
    assert (got == _wanted(residual, weight)).float().mean() > 0.99


def test_a_wider_residual_stream_keeps_its_own_dtype() -> None:
    x, before, weight = _random(2, 45, dtype=torch.float16), _random(2, 45, seed=1), torch.ones(45).half()
    residual = before.clone()
    got = add_rms_norm_(x, residual, weight, eps=EPS)
    assert torch.equal(residual, before + x.float()) and got.dtype is torch.float16
    _assert_close(got, _wanted(residual, torch.ones(45)).half())


@pytest.mark.parametrize("size", [5120, MAX_SIZE])
def test_wide_rows_are_normed(size: int) -> None:
    x, weight = _random(2, size), _random(size, seed=1)
    _assert_close(rms_norm(x, weight, eps=EPS), _wanted(x, weight))


def test_a_row_is_bitwise_the_same_in_any_batch() -> None:
    x, weight = _random(5, 333), _random(333, seed=1)
    whole = rms_norm(x, weight, eps=EPS)
    assert all(torch.equal(rms_norm(x[i : i + 1], weight, eps=EPS)[0], whole[i]) for i in range(5))


def test_half_precision_squares_do_not_overflow() -> None:
    x = torch.full((1, 64), 60_000.0, dtype=torch.float16)
    assert rms_norm(x, torch.ones(64).half(), eps=EPS).tolist() == [[1.0] * 64]


def test_no_rows_give_no_rows() -> None:
    none, weight = torch.empty(0, 8), torch.ones(8)
    assert rms_norm(none, weight, eps=EPS).shape == add_rms_norm_(none, none, weight, eps=EPS).shape == (0, 8)
