from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minivllm.layers.norm import RMSNorm


def _by_definition(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def _make(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * scale
    return x.to(dtype), (1 + 0.5 * torch.randn(shape[-1], generator=generator)).to(dtype)


@pytest.mark.parametrize("shape", [(1, 256), (3, 48), (5, 1), (2, 3, 24)], ids=["N1-C256", "N3-C48", "C1", "N2-H3-D24"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4, 0.0])
def test_norm_is_its_definition(shape: tuple[int, ...], scale: float) -> None:
    x, weight = _make(*shape, scale=scale)
    torch.testing.assert_close(RMSNorm(weight, 1e-5)(x).double(), _by_definition(x, weight, 1e-5), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str)
# The square of 300 overflows float16.
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_half_precision_is_normed_in_float32(dtype: torch.dtype, tolerance: float, scale: float) -> None:
    x, weight = _make(4, 48, dtype=dtype, scale=scale)
    normed = RMSNorm(weight, 1e-5)(x)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.double(), _by_definition(x, weight, 1e-5), atol=tolerance, rtol=tolerance)


def test_a_weight_a_head_broadcasts_over_tokens() -> None:
    x, _ = _make(5, 3, 8)
    weight = torch.arange(1.0, 25.0).view(3, 8)
    torch.testing.assert_close(RMSNorm(weight, 1e-6)(x).double(), _by_definition(x, weight, 1e-6), atol=1e-4, rtol=1e-5)


def test_norm_leaves_its_input_alone_and_add_updates_the_residual() -> None:
    x, weight = _make(3, 48)
    residual = x.flip(0).clone()
    norm = RMSNorm(weight, 1e-5)
    before = x.clone()
    norm(x)
    assert torch.equal(x, before)

    total = x + residual
    normed = norm.add(x, residual)
    assert torch.equal(residual, total)
    assert torch.equal(x, before)
    torch.testing.assert_close(normed, norm(total))
