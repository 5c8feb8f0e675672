"""GPTQ against the sentence that defines it, and both calibrated schemes against rounding to the nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minivllm.quantization.awq import Awq
from minivllm.quantization.base import LinearTarget
from minivllm.quantization.gptq import Gptq, best_shrinks, gptq_codes
from minivllm.quantization.weight import QuantizedWeight, integer_scales, round_to_nearest

CALIBRATION = {"path": "random"}


def _make_correlated(num_tokens: int, num_inputs: int, seed: int = 0) -> Tensor:
    """Inputs as they are in a model: correlated, some far larger than others."""
    draws = torch.Generator().manual_seed(seed)
    latent = torch.randn(num_tokens, num_inputs // 2, generator=draws)
    mixed = latent @ torch.randn(num_inputs // 2, num_inputs, generator=draws) / num_inputs**0.5
    mixed += 0.1 * torch.randn(num_tokens, num_inputs, generator=draws)
    return mixed * torch.logspace(-1, 1, num_inputs)[torch.randperm(num_inputs, generator=draws)]


def _output_error(weight: Tensor, made: Tensor, x: Tensor) -> float:
    return float(((made - weight) @ x.T).norm() / (weight @ x.T).norm())


def _slow_codes(weight: Tensor, hessian: Tensor, scales: Tensor, zeros: Tensor, damp: float) -> Tensor:
    """One column after the other, with the inverse of what is left computed anew each time: equation 3 of the paper."""
    num_inputs = weight.shape[1]
    size = num_inputs // scales.shape[1]
    full = hessian.double() + damp * hessian.double().diagonal().mean() * torch.eye(num_inputs, dtype=torch.float64)
    left, codes = weight.double().clone(), torch.empty_like(weight, dtype=torch.uint8)
    for j in range(num_inputs):
        inverse = torch.linalg.inv(full[j:, j:])
        scale, zero = scales[:, j // size].double(), zeros[:, j // size].double()
        codes[:, j] = ((left[:, j] / scale).round() + zero).clamp(0, 15).to(torch.uint8)
        error = left[:, j] - (codes[:, j].double() - zero) * scale
        left[:, j:] -= error[:, None] * inverse[0] / inverse[0, 0]
    return codes


@pytest.mark.parametrize("num_inputs", [32, 160])
def test_codes_are_those_of_the_definition(num_inputs: int) -> None:
    weight = torch.randn(12, num_inputs, generator=torch.Generator().manual_seed(1)) * 0.1
    x = _make_correlated(400, num_inputs)
    scales, zeros = integer_scales(weight, bits=4, group_size=32, symmetric=False)
    assert zeros is not None
    got = gptq_codes(weight, x.T @ x, scales, zeros, damp_fraction=0.01)
    wanted = _slow_codes(weight, x.T @ x, scales, zeros, 0.01)
    # A value may lie on the border between two codes in one precision and not in the other, and later ones follow it.
    assert (got == wanted).float().mean() > 0.99
    made = [QuantizedWeight(kind="int4", codes=c, scales=scales, zeros=zeros).dequantize() for c in (got, wanted)]
    errors = [_output_error(weight, one, x) for one in made]
    assert abs(errors[0] - errors[1]) < 0.02 * errors[1]


@pytest.mark.parametrize("group_size", [32, 128])
def test_both_calibrated_schemes_beat_rounding_on_the_product(group_size: int) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2)) * 0.1
    x, other = _make_correlated(1200, 256).split([800, 400])
    target = LinearTarget()
    rounded = round_to_nearest(weight, bits=4, group_size=group_size, symmetric=False)
    plain = _output_error(weight, rounded.dequantize(), other)
    for act_order in (False, True):
        gptq = Gptq(target=target, calibration=CALIBRATION, group_size=group_size, act_order=act_order)
        assert _output_error(weight, gptq.quantize("layers.0.o", weight, x).dequantize(), other) < 0.8 * plain
    awq = Awq(target=target, calibration=CALIBRATION, group_size=group_size)
    scale = awq.input_scale("layers.0.qkv", weight, x)
    assert scale is not None and (scale > 0).all()
    made = awq.quantize("layers.0.qkv", weight * scale, x / scale).dequantize() / scale
    assert _output_error(weight, made, other) < 0.9 * plain


def test_inputs_that_the_text_never_fed_are_rounded_all_the_same() -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(3)) * 0.1
    x = _make_correlated(20, 64)
    x[:, 7] = 0
    x[:, 40:] = 0
    made = Gptq(target=LinearTarget(), calibration=CALIBRATION, group_size=32).quantize("layers.0.o", weight, x)
    step = made.scales.float().repeat_interleave(32, dim=1)
    # Nothing flows in there, so nothing is made good there.
    assert ((made.dequantize() - weight)[:, 40:].abs() <= 1.01 * step[:, 40:]).all()


def test_a_range_is_shrunk_only_where_that_helps() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(4)) * 0.1
    weight[2, 5] = 3.0
    quiet = _make_correlated(300, 64)
    quiet[:, 5] *= 1e-4
    shrinks = best_shrinks(weight, quiet.T @ quiet, 32, symmetric=False)
    assert shrinks.shape == (6, 2) and (shrinks <= 1).all() and (shrinks >= 0.5).all()
    # A weight that nothing flows through need not fit.
    assert shrinks[2, 0] < 0.6
