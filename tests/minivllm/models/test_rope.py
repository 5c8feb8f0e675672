from __future__ import annotations

import math

import pytest
import torch

from minivllm.models.rope import apply_rope_, interleave_pairs, inverse_frequencies, rotation_table
from minivllm.models.spec import RopeSpec


def _rotate_by_definition(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """Pairs (i, i + D/2) turned one by one, in double precision."""
    out = x.double().clone()
    half = x.shape[-1] // 2
    for n, position in enumerate(positions.tolist()):
        for i in range(half):
            angle = position * inv_freq[i].item()
            a, b = x[n, :, i].double(), x[n, :, i + half].double()
            out[n, :, i] = a * math.cos(angle) - b * math.sin(angle)
            out[n, :, i + half] = a * math.sin(angle) + b * math.cos(angle)
    return out


def _interleave(x_NHD: torch.Tensor) -> torch.Tensor:
    """Reorder features as a model's weights are when it loads."""
    num_tokens, num_heads, head_dim = x_NHD.shape
    rows = x_NHD.permute(1, 2, 0).reshape(num_heads * head_dim, num_tokens)
    return interleave_pairs(rows, head_dim).view(num_heads, head_dim, num_tokens).permute(2, 0, 1)


def test_default_frequencies_fall_geometrically_from_one() -> None:
    inv_freq, factor = inverse_frequencies(RopeSpec(theta=100.0), 8)
    torch.testing.assert_close(inv_freq, torch.tensor([1.0, 100**-0.25, 0.1, 100**-0.75]))
    assert factor == 1.0


def test_llama3_keeps_fast_pairs_and_divides_slow_ones() -> None:
    spec = RopeSpec(rope_type="llama3", theta=1e4, factor=8.0, original_max_position_embeddings=64)
    plain, _ = inverse_frequencies(RopeSpec(theta=1e4), 16)
    scaled, factor = inverse_frequencies(spec, 16)
    assert factor == 1.0
    assert scaled[0] == plain[0]
    assert scaled[-1] == plain[-1] / 8
    assert ((scaled <= plain) & (scaled >= plain / 8)).all()


def test_yarn_scales_attention_by_the_log_of_the_factor() -> None:
    spec = RopeSpec(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
    assert inverse_frequencies(spec, 16)[1] == pytest.approx(0.1 * math.log(4) + 1)
    assert rotation_table(spec, 16, 5).abs().sub(0.1 * math.log(4) + 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str
)
@pytest.mark.parametrize("shape", [(1, 1, 2), (5, 3, 6), (7, 4, 24)], ids=["N1-H1-D2", "N5-H3-D6", "N7-H4-D24"])
def test_rotation_follows_the_definition(shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float) -> None:
    num_tokens, num_heads, head_dim = shape
    spec = RopeSpec(theta=50.0)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    positions = torch.arange(num_tokens).mul(9).flip(0)
    wanted = _rotate_by_definition(x, positions, inverse_frequencies(spec, head_dim)[0])

    # A slice of a wider buffer, as q and k are.
    wide = torch.full((num_tokens, num_heads + 2, head_dim), 3.0, dtype=dtype)
    wide[:, :num_heads] = _interleave(x)
    apply_rope_(wide[:, :num_heads], rotation_table(spec, head_dim, 100).index_select(0, positions))
    torch.testing.assert_close(wide[:, :num_heads].double(), _interleave(wanted), atol=tolerance, rtol=0)
    assert (wide[:, num_heads:] == 3).all()


def test_interleaving_pairs_keeps_heads_apart() -> None:
    rows = torch.arange(12)
    assert interleave_pairs(rows, 6).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert interleave_pairs(rows[:, None].expand(-1, 2), 6)[:, 1].tolist() == interleave_pairs(rows, 6).tolist()
