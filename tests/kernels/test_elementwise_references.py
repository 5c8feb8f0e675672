from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import rms_norm, silu

from minivllm_kernels.rms_norm.reference import rms_norm_reference
from minivllm_kernels.rotary.reference import rotary_reference
from minivllm_kernels.silu_and_mul.reference import silu_and_mul_reference


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 3, 33)], ids=str)
def test_rms_norm_is_torchs(shape: tuple[int, ...]) -> None:
    x, weight = _random(*shape), _random(shape[-1], seed=1)
    ours = rms_norm_reference(x, weight, eps=1e-5)
    torch.testing.assert_close(ours, rms_norm(x, shape[-1:], weight, 1e-5), rtol=1e-12, atol=1e-12)


def test_rms_norm_by_hand() -> None:
    # Mean square (9 + 16) / 2 = 12.5, and half of one more from eps: the root is sqrt(13).
    ours = rms_norm_reference(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), eps=0.5)
    assert ours[0].tolist() == pytest.approx([3 / math.sqrt(13), 8 / math.sqrt(13)])


def test_rms_norm_of_zeros_is_zero() -> None:
    assert not rms_norm_reference(torch.zeros(1, 4), torch.ones(4), eps=1e-6).any()


@pytest.mark.parametrize("shape", [(1, 2), (5, 14), (2, 3, 66)], ids=str)
def test_silu_and_mul_is_torchs_silu_of_the_first_half_times_the_second(shape: tuple[int, ...]) -> None:
    gate_up = _random(*shape) * 5
    half = shape[-1] // 2
    expected = silu(gate_up[..., :half]) * gate_up[..., half:]
    torch.testing.assert_close(silu_and_mul_reference(gate_up), expected, rtol=1e-12, atol=1e-12)


def test_silu_and_mul_survives_large_gates() -> None:
    ours = silu_and_mul_reference(torch.tensor([[1000.0, -1000.0, 3.0, 3.0]]))
    assert ours.tolist() == [[3000.0, 0.0]]


def test_rotary_turns_a_quarter_by_hand() -> None:
    # Pairs are (x0, x2) and (x1, x3). At position 3 they turn by 90 and by 180 degrees.
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]], dtype=torch.float64)
    inv_freq = torch.tensor([math.pi / 6, math.pi / 3], dtype=torch.float64)
    ours = rotary_reference(x, torch.tensor([3]), inv_freq)
    torch.testing.assert_close(ours, torch.tensor([[[-3.0, -2.0, 1.0, -4.0]]], dtype=torch.float64))
    scaled = rotary_reference(x, torch.tensor([3]), inv_freq, scaling=1.5)
    torch.testing.assert_close(scaled, ours * 1.5)


def test_rotary_at_position_zero_changes_nothing() -> None:
    x = _random(2, 3, 8)
    assert torch.equal(rotary_reference(x, torch.zeros(2, dtype=torch.int64), _random(4)), x)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    inv_freq = 10_000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    q, k = _random(1, 1, 8, seed=1), _random(1, 1, 8, seed=2)

    def score(query_at: int, key_at: int) -> torch.Tensor:
        turned_q = rotary_reference(q, torch.tensor([query_at]), inv_freq)
        turned_k = rotary_reference(k, torch.tensor([key_at]), inv_freq)
        return (turned_q * turned_k).sum()

    torch.testing.assert_close(score(1007, 1000), score(7, 0))
    assert not torch.isclose(score(7, 0), score(8, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_references_answer_in_the_dtype_that_they_got(dtype: torch.dtype) -> None:
    x = torch.ones(2, 3, 4, dtype=dtype)
    assert rms_norm_reference(x, torch.ones(4, dtype=dtype), eps=1e-6).dtype == dtype
    assert silu_and_mul_reference(x).dtype == dtype
    assert rotary_reference(x, torch.arange(2), torch.ones(2)).dtype == dtype
