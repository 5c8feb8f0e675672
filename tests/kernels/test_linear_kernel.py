"""The batch-invariant product in Triton: its definition, and rows that know nothing of each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from minivllm_kernels.linear.kernel import LinearConfig, choose_config, linear
from minivllm_kernels.linear.reference import linear_reference

ROOT = Path(__file__).resolve().parent.parent.parent


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


def _wanted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """On the CPU: a product by cuBLAS wants its workspace set up to be called deterministic."""
    return linear_reference(x.cpu(), weight.cpu(), None if bias is None else bias.cpu()).to(DEVICE)


def _between_nans(x: Tensor) -> Tensor:
    """The same rows in memory whose other rows and features are NaN."""
    wide = torch.full((x.shape[0] + 2, x.shape[1] + 16), float("nan"), dtype=x.dtype)
    wide[1:-1, 8:-8] = x
    return wide[1:-1, 8:-8]


@settings(max_examples=14, deadline=None, derandomize=True)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 140) | st.sampled_from([128, 256]),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_linear_is_its_definition(
    num_rows: int, num_out: int, num_in: int, dtype: torch.dtype, with_bias: bool
) -> None:
    x = _between_nans(_random(num_rows, num_in, dtype=dtype))
    weight = _random(num_out, num_in, seed=1, dtype=dtype)
    bias = _random(num_out, seed=2, dtype=dtype) if with_bias else None
    got = linear(x, weight, bias)
    assert got.dtype is dtype and got.is_contiguous()
    tolerance = 2e-5 if dtype is torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, _wanted(x, weight, bias), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_bitwise_the_same_in_any_batch(dtype: torch.dtype) -> None:
    # 600 rows take another tile than 70 or one.
    x, weight = _random(600, 24, dtype=dtype), _random(33, 24, seed=1, dtype=dtype)
    whole = linear(x, weight)
    for first, end in ((0, 1), (599, 600), (100, 170)):
        assert torch.equal(linear(x[first:end], weight), whole[first:end])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="Triton's interpreter has no tensor cores")
@pytest.mark.parametrize("shape", [(1024, 3072), (6144, 4096), (24_576, 4096)], ids=str)
def test_a_row_is_bitwise_the_same_in_any_batch_of_a_real_model(shape: tuple[int, int]) -> None:
    x, weight = _random(4096, shape[1], dtype=torch.bfloat16), _random(*shape, seed=1, dtype=torch.bfloat16)
    whole = linear(x, weight)
    for first, end in ((0, 1), (4095, 4096), (7, 71), (100, 165), (1000, 1512), (2000, 2513)):
        assert torch.equal(linear(x[first:end], weight), whole[first:end]), (first, end)


def test_many_tiles_of_rows_and_columns_are_each_done_once() -> None:
    # 19 x 3 tiles: a whole group of 16, one of 3, and edges on both sides.
    x, weight = _random(297, 20), _random(47, 20, seed=1)
    config = LinearConfig(block_m=16, block_n=16, block_k=16, num_warps=4, num_stages=2)
    torch.testing.assert_close(linear(x, weight, config=config), _wanted(x, weight), rtol=2e-5, atol=2e-5)


def test_the_weight_alone_decides_the_columns_and_the_depth_of_a_tile() -> None:
    for num_out, num_in in ((384, 256), (1024, 3072), (4096, 1024), (6144, 4096), (151_936, 1024)):
        for dtype in (torch.float32, torch.bfloat16):
            chosen = [choose_config(num_rows, num_out, num_in, dtype) for num_rows in (1, 64, 65, 512, 513, 9000)]
            assert len({(config.block_n, config.block_k) for config in chosen}) == 1
            assert all(config.num_stages >= 2 for config in chosen)


@pytest.mark.slow
def test_the_instruction_is_the_same_at_any_number_of_rows(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/compile_kernels", "--only", "linear-float16-6144x*", "--architecture", "90"]
    finished = subprocess.run(
        [*command, "--ptx", str(tmp_path), "--jobs", "1"], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    used = [set(re.findall(r"wgmma\S*\.(m64n\d+k16)\.", path.read_text())) for path in tmp_path.glob("*.ptx")]
    assert used == [{"m64n64k16"}] * 3


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.empty(0, 8), torch.empty(5, 8)).shape == (0, 5)
