"""The compiled CPU kernels against their references: odd shapes, any number of threads, and rows that know nothing of
each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from minivllm_kernels.linear.cpu import linear, pack_panels, unpack_rows
from minivllm_kernels.linear.reference import linear_reference
from minivllm_kernels.rms_norm.cpu import rms_norm
from minivllm_kernels.rms_norm.reference import rms_norm_reference
from minivllm_kernels.rotary.cpu import rotate_
from minivllm_kernels.rotary.reference import rotary_reference
from minivllm_kernels.row_max.cpu import row_max
from minivllm_kernels.row_max.reference import row_max_reference
from minivllm_kernels.silu_and_mul.cpu import silu_and_mul
from minivllm_kernels.silu_and_mul.reference import silu_and_mul_reference


@pytest.fixture(params=[1, 2], ids=lambda n: f"threads{n}", autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    panels = pack_panels(weight)
    padded = torch.zeros(panels.shape[0] * panels.shape[2])
    if bias is not None:
        padded[: len(bias)] = bias
    return linear(x, panels, padded, len(weight))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("out", [1, 31, 32, 33, 97])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 25])
def test_linear_is_its_definition(rows: int, out: int, with_bias: bool) -> None:
    x, weight, bias = _random(rows, 45), _random(out, 45, seed=1), _random(out, seed=2)
    got = _linear(x, weight, bias if with_bias else None)
    torch.testing.assert_close(got, linear_reference(x, weight, bias if with_bias else None), atol=1e-5, rtol=1e-5)


def test_a_row_of_a_linear_is_bitwise_the_same_in_any_batch() -> None:
    x, weight = _random(29, 45), _random(70, 45, seed=1)
    whole = _linear(x, weight, None)
    for first, end in ((0, 1), (3, 5), (7, 29), (20, 28)):
        assert torch.equal(_linear(x[first:end].contiguous(), weight, None), whole[first:end])


def test_rows_of_a_packed_weight_can_be_looked_up() -> None:
    weight, rows = _random(70, 5), torch.tensor([69, 0, 31, 32, 0])
    assert torch.equal(unpack_rows(pack_panels(weight), rows), weight[rows])
    assert unpack_rows(pack_panels(weight), rows[:0]).shape == (0, 5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (5, 45), (4, 256)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4, 0.0])
def test_rms_norm_is_its_definition(shape: tuple[int, int], scale: float) -> None:
    x, weight = _random(*shape) * scale, _random(shape[1], seed=1)
    torch.testing.assert_close(rms_norm(x, weight, eps=1e-5), rms_norm_reference(x, weight, eps=1e-5))


def test_rms_norm_adds_to_the_residual_in_place_and_leaves_x_alone() -> None:
    x, residual, weight = _random(3, 45), _random(3, 45, seed=1), _random(45, seed=2)
    x_before, total = x.clone(), x + residual
    normed = rms_norm(x, weight, eps=1e-5, residual=residual)
    assert torch.equal(residual, total) and torch.equal(x, x_before)
    torch.testing.assert_close(normed, rms_norm_reference(total, weight, eps=1e-5))


@pytest.mark.parametrize("shape", [(1, 2), (3, 38), (0, 8), (7, 1408)], ids=str)
def test_silu_and_mul_is_its_definition(shape: tuple[int, int]) -> None:
    gate_up = _random(*shape) * 8
    torch.testing.assert_close(silu_and_mul(gate_up), silu_and_mul_reference(gate_up), atol=1e-6, rtol=1e-6)


def test_silu_and_mul_survives_large_gates_and_passes_nan_on() -> None:
    x = torch.tensor([[1e4, -1e4, 0.0, float("nan"), 3.0, 3.0, 3.0, 3.0]])
    got = silu_and_mul(x)[0]
    torch.testing.assert_close(got[:3], torch.tensor([3e4, 0.0, 0.0]), atol=1e-30, rtol=1e-6)
    assert got[3].isnan()


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("size", [2, 6, 24, 32])
def test_rotation_is_its_definition_on_interleaved_pairs(size: int, with_norm: bool) -> None:
    num_heads, num_rows, half = 3, 7, size // 2
    positions = torch.tensor([0, 1, 2, 40, 5, 99, 3])
    inv_freq = 50.0 ** -(torch.arange(half) / half)
    rotations = torch.polar(torch.ones(100, half), torch.arange(100.0)[:, None] * inv_freq)[:, None].contiguous()
    qkv, weight = _random(num_rows, (num_heads + 2) * size), 1 + 0.3 * _random(num_heads, size, seed=1)
    heads = qkv[:, : num_heads * size].view(num_rows, num_heads, size).clone()
    if with_norm:
        heads = torch.stack([rms_norm_reference(heads[:, h], weight[h], eps=1e-6) for h in range(num_heads)], dim=1)
    apart = torch.cat([heads[..., 0::2], heads[..., 1::2]], dim=-1)
    turned = rotary_reference(apart, positions, inv_freq)
    wanted = torch.stack([turned[..., :half], turned[..., half:]], dim=-1).flatten(1)
    untouched = qkv[:, num_heads * size :].clone()
    rotate_(qkv, positions, rotations, num_heads=num_heads, norm_weight=weight if with_norm else None, eps=1e-6)
    torch.testing.assert_close(qkv[:, : num_heads * size], wanted, atol=2e-5, rtol=1e-5)
    assert torch.equal(qkv[:, num_heads * size :], untouched)


@pytest.mark.parametrize("size", [1, 15, 16, 63, 64, 130])
def test_row_max_is_its_definition_with_ties_infinities_and_nan(size: int) -> None:
    x = _random(9, size).round()
    x[1, size // 2], x[2], x[3, -1], x[4, -1] = float("nan"), float("-inf"), float("inf"), 99.0
    values, places = row_max(x)
    wanted_values, wanted_places = row_max_reference(x)
    torch.testing.assert_close(values, wanted_values, equal_nan=True, atol=0, rtol=0)
    assert torch.equal(places, wanted_places)
