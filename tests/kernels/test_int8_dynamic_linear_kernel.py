"""The product of 8-bit integers in Triton: rows rounded to the bit as they are defined, and sums that are exact."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from minivllm_kernels.int8_dynamic_linear.config import EightBitConfig, choose_config
from minivllm_kernels.int8_dynamic_linear.kernel import linear, pack, quantize_rows
from minivllm_kernels.int8_dynamic_linear.reference import int8_dynamic_linear_reference, quantize_rows_reference

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


def _weight(num_out: int, num_in: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator("cpu").manual_seed(1)
    codes = torch.randint(-127, 128, (num_out, num_in), generator=draws, dtype=torch.int8, device="cpu")
    return codes.to(DEVICE), (torch.rand(num_out, generator=draws, device="cpu") / 100 + 0.001).to(DEVICE)


def _between_nans(x: Tensor) -> Tensor:
    """The same rows in memory whose other rows and features are NaN."""
    wide = torch.full((x.shape[0] + 2, x.shape[1] + 16), float("nan"), dtype=x.dtype)
    wide[1:-1, 8:-8] = x
    return wide[1:-1, 8:-8]


def _assert_rounded(x: Tensor) -> None:
    codes, scales = quantize_rows(x)
    # On the CPU: CUDA divides a tensor by a number by its inverse.
    expected_codes, expected_scales = quantize_rows_reference(x.cpu())
    assert torch.equal(codes.cpu(), expected_codes) and torch.equal(scales.cpu(), expected_scales)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 800), st.sampled_from(DTYPES), st.integers(0, 100), st.integers(-20, 10))
def test_rows_are_rounded_to_the_bit(num_rows: int, num_in: int, dtype: torch.dtype, seed: int, power: int) -> None:
    _assert_rounded(_between_nans((_random(num_rows, num_in, seed=seed) * 2.0**power).to(dtype)))


def test_halves_are_rounded_to_even() -> None:
    # With a largest magnitude of 127 the codes are the numbers.
    halves = torch.arange(-126.5, 127.0, 1.0)
    _assert_rounded(torch.cat([halves, torch.tensor([127.0])])[None])
    codes, _ = quantize_rows(torch.cat([halves, torch.tensor([127.0])])[None])
    assert (codes[0, :-1] % 2 == 0).all()


def test_the_inverse_of_a_scale_is_rounded_as_it_is_defined() -> None:
    # Next to a half: with 127 / 3.2246 rounded once instead of 1 / 3.2246 times 127 the code is -44.
    x = torch.tensor([[3.224609375, -1.1044921875, 1.3076171875]])
    _assert_rounded(x)
    assert quantize_rows(x)[0].tolist() == [[127, -43, 51]]


def test_a_row_of_zeros_has_scale_zero_and_codes_zero() -> None:
    x = torch.stack([torch.zeros(40), torch.ones(40), -torch.zeros(40)])
    codes, scales = quantize_rows(x)
    assert not codes[0].any() and not codes[2].any() and scales.tolist() == [0, scales[1], 0]
    _assert_rounded(x)


def test_one_scale_for_all_rows_cuts_off_what_is_beyond_it() -> None:
    x = torch.tensor([[0.5, -1.0, 2.5, 3.5], [-200.0, 200.0, 126.75, 0.0]])
    codes, scales = quantize_rows(x, torch.tensor([1.0]))
    assert codes.tolist() == [[0, -1, 2, 4], [-127, 127, 127, 0]] and scales.tolist() == [1.0, 1.0]
    codes, scales = quantize_rows(x, torch.tensor(0.5))
    assert codes.tolist() == [[1, -2, 5, 7], [-127, 127, 127, 0]] and scales.tolist() == [0.5, 0.5]


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
    # Sums are exact: what is left is the product with two scales, and one rounding.
    tolerance = 1e-6 if dtype is torch.float32 else torch.finfo(dtype).eps
    expected = int8_dynamic_linear_reference(*on_cpu).to(DEVICE)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_any_tiles_and_splits_give_the_same_bits_and_leave_counters_at_zero() -> None:
    x, packed = _random(19, 704), pack(*_weight(70, 704))
    expected = linear(x, packed)
    for block_m, block_n, num_splits in ((16, 64, 1), (16, 64, 3), (32, 128, 6), (64, 64, 2)):
        config = EightBitConfig(block_m=block_m, block_n=block_n, num_splits=num_splits, num_warps=4, num_stages=2)
        assert torch.equal(linear(x, packed, config=config), expected)
        assert not packed.counters.any()


def test_a_row_is_bitwise_the_same_in_any_batch() -> None:
    x, packed = _random(140, 300, dtype=torch.float16), pack(*_weight(33, 300))
    whole = linear(x, packed)
    for first, end in ((0, 1), (139, 140), (60, 125), (7, 40)):
        assert torch.equal(linear(x[first:end], packed), whole[first:end])


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.empty(0, 32), pack(*_weight(5, 32))).shape == (0, 5)


def test_a_weight_takes_a_byte_a_number() -> None:
    packed = pack(*_weight(1408, 4096))
    assert packed.nbytes == 1408 * 4096 + 1408 * 4 + packed.counters.nbytes


def test_tiles_fill_the_sms_and_grow_with_the_rows() -> None:
    def chosen(num_rows: int, num_out: int, num_in: int = 4096) -> EightBitConfig:
        return choose_config(num_rows, num_out, num_in, num_sms=132, wide_sums=False)

    for num_out in (4096, 6144, 24_576):
        configs = [chosen(num_rows, num_out) for num_rows in (1, 16, 32, 64, 128, 512, 2048, 8192)]
        assert [config.block_m for config in configs] == sorted(config.block_m for config in configs)
        for num_rows, config in zip((1, 16, 32, 64, 128, 512, 2048, 8192), configs, strict=True):
            tiles = -(-num_rows // config.block_m) * -(-num_out // config.block_n)
            assert tiles * config.num_splits >= 0.7 * 132
    assert chosen(2048, 4096).block_m == 256 and chosen(512, 4096).block_m == 128
