"""The product with 8-bit codes in Triton: its definition. What it shares with 4-bit codes (layout, splits, the PTX of
both) is tested there."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from minivllm_kernels.int4_linear.config import CodesConfig
from minivllm_kernels.int8_linear.kernel import dequantize, linear, pack
from minivllm_kernels.int8_linear.reference import dequantize_reference, int8_linear_reference

# Where a GPU is, it is what runs them, and bfloat16 with it, which Triton's interpreter gets wrong.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
GROUPS = [(256, 256), (704, 32), (704, 704), (704, 64), (384, 128), (512, 256), (300, 300), (20, 20)]


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


def _weight(num_out: int, num_in: int, group_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draws = torch.Generator("cpu").manual_seed(1)
    # -128 too, which checkpoints made elsewhere have.
    codes = torch.randint(-128, 128, (num_out, num_in), generator=draws, dtype=torch.int8, device="cpu")
    scales = torch.rand((num_out, num_in // group_size), generator=draws, device="cpu") / 64 + 0.001
    return codes.to(DEVICE), scales.to(DEVICE, dtype)


def _wanted(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    on_cpu = (None if one is None else one.cpu() for one in (x, codes, scales, bias))
    return int8_linear_reference(*on_cpu).to(DEVICE)


def _close(got: Tensor, wanted: Tensor) -> None:
    # Weights are exact: what is left is a sum in float32 and one rounding.
    tolerance = 2e-5 if got.dtype is torch.float32 else 2 * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())


@settings(max_examples=14, deadline=None, derandomize=True)
@given(
    st.sampled_from([1, 2, 7, 17, 65]),
    st.integers(1, 140),
    st.sampled_from(GROUPS),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_linear_is_its_definition(
    num_rows: int, num_out: int, groups: tuple[int, int], dtype: torch.dtype, with_bias: bool
) -> None:
    num_in, group_size = groups
    # Float32 has tiles of 16 rows by 32 outputs, many of them.
    num_out = num_out if dtype is not torch.float32 else num_out % 40 + 1
    # Between rows and features that are NaN.
    wide = torch.full((num_rows + 2, num_in + 16), float("nan"), dtype=dtype)
    x = wide[1:-1, 8:-8].copy_(_random(num_rows, num_in, dtype=dtype))
    weight = _weight(num_out, num_in, group_size, dtype)
    bias = _random(num_out, seed=2, dtype=dtype) if with_bias else None
    got = linear(x, pack(*weight), bias)
    assert got.dtype is dtype and got.is_contiguous()
    _close(got, _wanted(x, *weight, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", GROUPS, ids=lambda pair: f"{pair[0]}by{pair[1]}")
def test_the_weight_is_unpacked_and_rounded_once(groups: tuple[int, int], dtype: torch.dtype) -> None:
    codes, scales = _weight(40, *groups, dtype)
    expected = dequantize_reference(codes.cpu(), scales.cpu()).to(DEVICE, dtype)
    assert torch.equal(dequantize(pack(codes, scales)), expected)


@pytest.mark.parametrize("groups", [(704, 704), (704, 32)], ids=["row", "groups"])
def test_splits_add_up_and_leave_their_counters_at_zero(groups: tuple[int, int]) -> None:
    config = CodesConfig(block_m=16, block_n=64, num_splits=3, num_warps=4, num_stages=2)
    x, weight = _random(19, 704, dtype=torch.float16), _weight(70, *groups, torch.float16)
    packed = pack(*weight)
    _close(linear(x, packed, config=config), _wanted(x, *weight))
    assert not packed.counters.any()


def test_many_rows_are_multiplied_by_the_weight_in_full_precision() -> None:
    packed, x = pack(*_weight(20, 64, 64, torch.float16)), _random(257, 64, dtype=torch.float16)
    assert torch.equal(linear(x, packed), F.linear(x, dequantize(packed)))


def test_a_row_is_bitwise_the_same_in_any_batch_where_that_is_asked_for() -> None:
    x, packed = _random(260, 384, dtype=torch.float16), pack(*_weight(33, 384, 384, torch.float16))
    whole = linear(x, packed, batch_invariant=True)
    for first, end in ((0, 1), (259, 260), (100, 170)):
        assert torch.equal(linear(x[first:end], packed, batch_invariant=True), whole[first:end])


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.empty(0, 32), pack(*_weight(5, 32, 32, torch.float32))).shape == (0, 5)


def test_a_large_weight_takes_little_more_than_its_codes() -> None:
    packed = pack(*_weight(1408, 4096, 128, torch.float16))
    assert packed.nbytes / (1408 * 4096) == pytest.approx(1 + 2 / 128, abs=0.002)
