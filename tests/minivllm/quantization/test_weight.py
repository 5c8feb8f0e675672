"""Codes, scales and zeros: what they stand for, and that rounding is to the nearest."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minivllm.quantization.weight import SCALE_DTYPE, QuantizedWeight, integer_scales, round_to_nearest
from minivllm_kernels.int4_linear.reference import dequantize_reference as int4_reference
from minivllm_kernels.int8_linear.reference import dequantize_reference as int8_reference


def _make_weight(num_outputs: int, num_inputs: int, seed: int = 0, std: float = 0.05) -> Tensor:
    return torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(seed)) * std


forms = st.tuples(
    st.integers(1, 9), st.sampled_from([32, 64, 96]), st.sampled_from([4, 8]), st.booleans(), st.integers(0, 99)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(forms)
def test_every_weight_goes_to_the_nearest_point_of_its_groups_grid(form: tuple[int, int, int, bool, int]) -> None:
    num_outputs, num_inputs, bits, symmetric, seed = form
    weight = _make_weight(num_outputs, num_inputs, seed)
    made = round_to_nearest(weight, bits=bits, group_size=32, symmetric=symmetric)
    error = (made.dequantize() - weight).abs().unflatten(1, (-1, 32))
    step = made.scales.float()[:, :, None]
    # Half a step, and at the ends of the range what the scale lost when it was rounded to float16.
    slack = 15 * step * 2**-11 + step * (0.5 if bits == 4 and not symmetric else 1e-3)
    assert (error <= step / 2 + slack).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(forms)
def test_a_weight_means_what_the_kernels_references_say(form: tuple[int, int, int, bool, int]) -> None:
    num_outputs, num_inputs, bits, symmetric, seed = form
    made = round_to_nearest(_make_weight(num_outputs, num_inputs, seed), bits=bits, group_size=32, symmetric=symmetric)
    if bits == 4:
        assert made.codes.dtype is torch.uint8 and made.codes.max() <= 15
        wanted = int4_reference(made.codes, made.scales, made.zeros)
    else:
        assert made.codes.dtype is torch.int8 and made.codes.min() >= -127
        wanted = int8_reference(made.codes, made.scales)
    torch.testing.assert_close(made.dequantize().double(), wanted, rtol=1e-6, atol=0)


def test_a_hand_computed_group() -> None:
    weight = torch.tensor([[-1.0, 0.0, 0.5, 2.0]]).repeat(1, 8)
    made = round_to_nearest(weight, bits=4, group_size=32, symmetric=False)
    # Steps of 3 / 15 = 0.2 from -1 to 2.
    assert made.zeros is not None and made.zeros.tolist() == [[5]]
    assert made.codes[0, :4].tolist() == [0, 5, 7, 15] or made.codes[0, :4].tolist() == [0, 5, 8, 15]
    by_row = round_to_nearest(torch.tensor([[-1.0, 0.5, 0.25]]), bits=8)
    assert by_row.codes.tolist() == [[-127, 64, 32]] and by_row.scales.dtype is torch.float32
    assert by_row.scales.item() == torch.tensor(1 / 127).item()


def test_zeros_and_tiny_weights_stay_what_they_are() -> None:
    weight = torch.zeros(2, 64)
    weight[1] = 1e-7
    for bits, symmetric in ((4, False), (4, True), (8, True)):
        made = round_to_nearest(weight, bits=bits, group_size=32, symmetric=symmetric)
        assert torch.isfinite(made.scales).all() and (made.scales > 0).all()
        assert made.dequantize().abs().max() <= 2e-7


def test_codes_are_for_the_scale_as_it_is_kept() -> None:
    weight = _make_weight(40, 128, seed=3)
    made = round_to_nearest(weight, bits=4, group_size=32, symmetric=True)
    assert made.scales.dtype is SCALE_DTYPE
    exact = (weight.unflatten(1, (-1, 32)) / made.scales.float()[:, :, None]).round().clamp(-8, 7)
    assert torch.equal(made.codes.float().unflatten(1, (-1, 32)) - 8, exact)


def test_a_smaller_range_clips_the_largest() -> None:
    weight = _make_weight(3, 64)
    full, _ = integer_scales(weight, bits=4, group_size=32, symmetric=True)
    half, _ = integer_scales(weight, bits=4, group_size=32, symmetric=True, shrink=0.5)
    torch.testing.assert_close(half.float(), full.float() / 2, rtol=1e-3, atol=0)


def test_rows_are_picked_and_joined_with_all_that_belongs_to_them() -> None:
    made = round_to_nearest(_make_weight(6, 64), bits=4, group_size=32, symmetric=False)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.equal(made.rows(order).dequantize(), made.dequantize()[order])
    back = QuantizedWeight.join([made.rows(slice(0, 2)), made.rows(slice(2, 6))])
    assert torch.equal(back.dequantize(), made.dequantize()) and back.same_form(made)
    assert not made.same_form(round_to_nearest(_make_weight(6, 64), bits=4, group_size=64, symmetric=False))
