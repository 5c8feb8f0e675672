"""Rotary position embedding (arXiv 2104.09864), with frequencies stretched for longer contexts.

Dimension pair i of a head turns by `position * inv_freq[i]`. Hugging Face's checkpoints keep the two halves of pair i
at i and i + D/2 of a head; here they lie side by side, at 2i and 2i + 1, because then a head is D/2 complex numbers
and a rotation is one complex product, in place. `interleave_pairs` reorders the rows of q and k (and their biases and
norms) while a model loads. Scores do not change, as q and k are reordered alike; v and the output are not touched.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minivllm.models.spec import RopeSpec


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> tuple[Tensor, float]:
    """Radians a position that each pair turns by.

    Returns:
        [head_dim / 2] float32, and the factor that cos and sin are multiplied by.
    """
    # Every step in float32 and in Hugging Face's order: at position 10^5 a rounding of the frequency is 0.01 radians.
    inv_freq = 1.0 / (spec.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if spec.rope_type == "linear":
        return inv_freq / spec.factor, 1.0
    if spec.rope_type == "llama3":
        return _llama3(spec, inv_freq), 1.0
    if spec.rope_type == "yarn":
        return _yarn(spec, inv_freq, head_dim), _yarn_attention_factor(spec)
    assert spec.rope_type == "default", spec.rope_type
    return inv_freq, 1.0


def _llama3(spec: RopeSpec, inv_freq: Tensor) -> Tensor:
    """Frequencies with few turns in the original context are divided by `factor`, those with many are kept, and
    between them the two are mixed. Source: Llama 3.1 reference code, `apply_scaling`."""
    assert spec.original_max_position_embeddings is not None
    turns = spec.original_max_position_embeddings / (2 * math.pi / inv_freq)
    kept = (turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 - kept) * inv_freq / spec.factor + kept * inv_freq


def _yarn(spec: RopeSpec, inv_freq: Tensor, head_dim: int) -> Tensor:
    """Interpolate slow pairs, keep fast ones, and mix between, by pair index. Source: arXiv 2309.00071, section 3.2."""
    original = spec.original_max_position_embeddings
    assert original is not None

    def pair_with(turns: float) -> float:
        """Index, not whole, of the pair that makes this many turns in the original context of `original` tokens."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))

    low, high = pair_with(spec.beta_fast), pair_with(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # A ramp of no width would divide by zero.
    width = high - low if high != low else 0.001
    interpolated = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return inv_freq / spec.factor * interpolated + inv_freq * (1 - interpolated)


def _yarn_attention_factor(spec: RopeSpec) -> float:
    """Stretching flattens attention; cos and sin scaled by this sharpen it again. Source: the same, section 3.3."""
    if spec.attention_factor is not None:
        return spec.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(spec.factor) + 1.0 if spec.factor > 1 else 1.0

    if spec.mscale and spec.mscale_all_dim:
        return mscale(spec.mscale) / mscale(spec.mscale_all_dim)
    return mscale(1.0)


def rotation_table(spec: RopeSpec, head_dim: int, max_len: int) -> Tensor:
    """Every position's rotation, as complex numbers.

    Returns:
        [max_len, 1, head_dim / 2] complex64 on the CPU; the middle dimension stands for the heads.
    """
    inv_freq, attention_factor = inverse_frequencies(spec, head_dim)
    angles = torch.arange(max_len, dtype=torch.float32)[:, None] * inv_freq
    return torch.polar(torch.full_like(angles, attention_factor), angles)[:, None, :].contiguous()


def interleave_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """Reorder dimension 0 within each head, from (all first halves, all second halves) to pairs.

    Args:
        rows: [heads * head_dim, ...] of q or k: weight, bias, or a norm's weight.
    """
    halves = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def apply_rope_(x_NHD: Tensor, rotation: Tensor) -> None:
    """Rotate every head in place.

    Args:
        x_NHD: interleaved pairs; may be a slice of the heads of a wider tensor.
        rotation: [N, 1, D / 2] complex64.
    """
    num_tokens, num_heads, head_dim = x_NHD.shape
    pairs = x_NHD.view(num_tokens, num_heads, head_dim // 2, 2)
    if x_NHD.dtype is torch.float32:
        torch.view_as_complex(pairs).mul_(rotation)
    else:
        # There is no complex bfloat16, and complex float16 is slow where it exists.
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * rotation))
