"""The gated activation in Triton against its definition."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from minivllm_kernels.silu_and_mul.kernel import silu_and_mul
from minivllm_kernels.silu_and_mul.reference import silu_and_mul_reference

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


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draws = torch.Generator("cpu").manual_seed(0)
    return (torch.randn(*shape, generator=draws, device="cpu") * 4).to(DEVICE, dtype)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 600), st.integers(0, 3), st.sampled_from(DTYPES))
def test_silu_and_mul_is_its_definition(num_rows: int, size: int, pad: int, dtype: torch.dtype) -> None:
    wide = torch.full((num_rows, 2 * size + pad), float("nan"), dtype=dtype)
    gate_up = wide[:, : 2 * size]
    gate_up.copy_(_random(num_rows, 2 * size))
    got = silu_and_mul(gate_up)
    assert got.dtype is dtype and got.is_contiguous()
    tolerance = 1e-5 if dtype is torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(got, silu_and_mul_reference(gate_up), rtol=tolerance, atol=1e-7)


def test_rows_in_large_tiles_equal_rows_in_small_ones() -> None:
    # The width at which 9 rows are cut into tiles of 1024 and one is not, and the last tile is not full.
    gate_up = _random(9, 2 * 30_001)
    whole = silu_and_mul(gate_up)
    assert torch.equal(silu_and_mul(gate_up[8:])[0], whole[8])
    torch.testing.assert_close(whole, silu_and_mul_reference(gate_up), rtol=1e-5, atol=1e-7)


# An infinite exp is meant, and gives 0; numpy, which interprets it, warns.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_large_gates_survive_and_nan_is_passed_on() -> None:
    got = silu_and_mul(torch.tensor([[1e4, -1e4, 0.0, float("nan"), 3.0, 3.0, 3.0, 3.0]]))[0]
    assert got[:3].tolist() == [3e4, 0.0, 0.0] and got[3].isnan()


def test_no_rows_give_no_rows() -> None:
    assert silu_and_mul(torch.empty(0, 8)).shape == (0, 4)
