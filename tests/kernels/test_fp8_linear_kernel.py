"""The product of 8-bit floats in Triton: rows rounded to the bit as they are defined, and their sums.

Triton's interpreter multiplies float8 as float16, exactly, but cuts a float off when it makes one of 8 bits: there the
kernel rounds by arithmetic first, and the GPU's own conversion is left to the check of a GPU. Nor does the interpreter
know how few digits a tensor core keeps of its sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from minivllm_kernels.fp8_linear.kernel import linear, pack, quantize_rows
from minivllm_kernels.fp8_linear.reference import fp8_linear_reference, quantize_rows_reference
from minivllm_kernels.int8_dynamic_linear.config import EightBitConfig, choose_config

# Where a GPU is, it is what runs them, and bfloat16 with it, which Triton's interpreter gets wrong.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="float8_e4m3fn wants sm_89"
)


@pytest.fixture(autouse=True, scope="module")
def _new_memory_is_nan() -> Iterator[None]:
    torch.set_default_device(DEVICE)
    # Not filled with NaN: PyTorch fills no float8.
    yield
    torch.set_default_device(None)


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    draws = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=draws, device="cpu").to(DEVICE, dtype)


def _weight(num_out: int, num_in: int) -> tuple[Tensor, Tensor]:
    codes, scales = quantize_rows_reference(_random(num_out, num_in, seed=1).cpu())
    return codes.to(DEVICE), scales.to(DEVICE)


def _between_nans(x: Tensor) -> Tensor:
    """The same rows in memory whose other rows and features are NaN."""
    wide = torch.full((x.shape[0] + 2, x.shape[1] + 16), float("nan"), dtype=x.dtype)
    wide[1:-1, 8:-8] = x
    return wide[1:-1, 8:-8]


def _assert_rounded(x: Tensor) -> None:
    codes, scales = quantize_rows(x)
    # On the CPU: CUDA divides a tensor by a number by its inverse.
    expected_codes, expected_scales = quantize_rows_reference(x.cpu())
    assert codes.dtype is torch.float8_e4m3fn and torch.equal(scales.cpu(), expected_scales)
    assert torch.equal(codes.cpu().view(torch.uint8), expected_codes.view(torch.uint8))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 800), st.sampled_from(DTYPES), st.integers(0, 100), st.integers(-20, 10))
def test_rows_are_rounded_to_the_bit(num_rows: int, num_in: int, dtype: torch.dtype, seed: int, power: int) -> None:
    _assert_rounded(_between_nans((_random(num_rows, num_in, seed=seed) * 2.0**power).to(dtype)))


def test_each_number_of_8_bits_and_each_half_between_two_is_rounded_right() -> None:
    # With a largest magnitude of 448 the codes are the numbers, down to those without a leading digit and below.
    numbers = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    between = (numbers[1:] + numbers[:-1]) / 2
    near = torch.cat([between.nextafter(torch.tensor(1e3)), between.nextafter(torch.tensor(0.0))])
    row = torch.cat([numbers, between, near, numbers[1:2] / 4])
    _assert_rounded(torch.stack([row, -row]))


def test_a_row_of_zeros_has_scale_zero_and_codes_zero() -> None:
    x = torch.stack([torch.zeros(40), torch.ones(40)])
    codes, scales = quantize_rows(x)
    assert not codes[0].float().any() and scales[0] == 0
    _assert_rounded(x)


def test_one_scale_for_all_rows_cuts_off_what_is_beyond_it() -> None:
    codes, scales = quantize_rows(torch.tensor([[1.0, -3.0, 500.0, -1e6]]), torch.tensor([0.5]))
    assert codes.float().tolist() == [[2.0, -6.0, 448.0, -448.0]] and scales.tolist() == [0.5]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_what_is_not_finite_is_not_lost(value: float) -> None:
    x = _random(3, 40)
    x[1, 7] = value
    out = linear(x, pack(*_weight(5, 40)))
    assert not out[1].isfinite().any() and out[0].isfinite().all() and out[2].isfinite().all()


@settings(max_examples=14, deadline=None, derandomize=True)
@given(
    st.sampled_from([1, 2, 7, 17, 65]),
    st.integers(1, 140),
    st.integers(1, 140) | st.sampled_from([256, 300, 704]),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_linear_is_its_definition(
    num_rows: int, num_out: int, num_in: int, dtype: torch.dtype, with_bias: bool
) -> None:
    x, weight = _between_nans(_random(num_rows, num_in, dtype=dtype)), _weight(num_out, num_in)
    bias = _random(num_out, seed=2, dtype=dtype) if with_bias else None
    got = linear(x, pack(*weight), bias)
    assert got.dtype is dtype and got.is_contiguous()
    on_cpu = (None if one is None else one.cpu() for one in (x, *weight, bias))
    expected = fp8_linear_reference(*on_cpu).to(DEVICE)
    # A GPU keeps 14 bits of the sum of 128 products.
    tolerance = (2e-5 if DEVICE == "cpu" else 1e-3) if dtype is torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_splits_add_up_and_leave_their_counters_at_zero() -> None:
    x, packed = _random(19, 704), pack(*_weight(70, 704))
    expected = linear(x, packed, batch_invariant=True)
    for num_splits in (1, 3, 6):
        config = EightBitConfig(block_m=16, block_n=64, num_splits=num_splits, num_warps=4, num_stages=2)
        got = linear(x, packed, config=config)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
        assert not packed.counters.any()
        assert torch.equal(linear(x, packed, config=config), got)


def test_a_row_is_bitwise_the_same_in_any_batch_where_that_is_asked_for() -> None:
    x, packed = _random(140, 300, dtype=torch.float16), pack(*_weight(33, 300))
    whole = linear(x, packed, batch_invariant=True)
    for first, end in ((0, 1), (139, 140), (60, 125), (7, 40)):
        assert torch.equal(linear(x[first:end], packed, batch_invariant=True), whole[first:end])
    chosen = {
        choose_config(rows, 4096, 4096, num_sms=132, wide_sums=True, batch_invariant=True) for rows in (1, 65, 9000)
    }
    assert len(chosen) == 1 and chosen.pop().num_splits == 1


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.empty(0, 32), pack(*_weight(5, 32))).shape == (0, 5)
