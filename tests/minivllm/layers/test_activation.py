from __future__ import annotations

import pytest
import torch

from minivllm.layers.activation import silu_and_mul


@pytest.mark.parametrize("shape", [(1, 2), (3, 38), (0, 8)], ids=["N1-I1", "N3-I19", "N0-I4"])
def test_first_half_gates_the_second(shape: tuple[int, int]) -> None:
    gate_up = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = gate_up.clone()
    size = shape[1] // 2
    gate, up = gate_up[:, :size].double(), gate_up[:, size:].double()
    torch.testing.assert_close(silu_and_mul(gate_up).double(), gate / (1 + (-gate).exp()) * up)
    assert torch.equal(gate_up, before)
