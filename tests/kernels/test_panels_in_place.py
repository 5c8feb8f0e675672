"""A weight that is given away may become its own panels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm_kernels import cpu_panels
from minivllm_kernels.linear.cpu import pack_panels


@settings(max_examples=30, deadline=None)
@given(num_panels=st.integers(0, 5), rest=st.integers(0, 31), num_inputs=st.integers(1, 40), step=st.integers(1, 5000))
def test_panels_are_the_same_whether_the_weight_is_overwritten_or_not(
    num_panels: int, rest: int, num_inputs: int, step: int
) -> None:
    num_outputs = 32 * num_panels + rest
    weight = torch.arange(num_outputs * num_inputs, dtype=torch.float32).view(num_outputs, num_inputs)
    with pytest.MonkeyPatch.context() as patch:
        # Some panels at once, one, or all.
        patch.setattr(cpu_panels, "_COPIED_VALUES", step)
        wanted, kept = pack_panels(weight), weight.clone()
        assert torch.equal(weight, kept)
        given_away = weight.clone()
        panels = pack_panels(given_away, overwrite=True)
    assert torch.equal(panels, wanted)
    for panel in range(num_panels):
        assert torch.equal(wanted[panel].t(), weight[32 * panel : 32 * (panel + 1)])
    if rest:
        assert torch.equal(wanted[-1].t()[:rest], weight[-rest:]) and not wanted[-1].t()[rest:].any()
    if not rest and num_panels:
        assert panels.data_ptr() == given_away.data_ptr()


def test_a_weight_that_lies_in_another_order_is_not_overwritten() -> None:
    weight = torch.randn(5, 64).t()
    before = weight.clone()
    assert torch.equal(pack_panels(weight, overwrite=True), pack_panels(before))
    assert torch.equal(weight, before)
