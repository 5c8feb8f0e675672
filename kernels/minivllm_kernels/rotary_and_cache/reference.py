"""What happens to q, k and v between their projection and attention.

Shape suffixes: N packed tokens, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minivllm_kernels.rms_norm.reference import rms_norm_reference

# The largest magnitude that each 8-bit type holds: a scale maps the largest of a vector to it.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def rotary_and_cache_reference_(
    qkv: Tensor,
    positions: Tensor,
    rotations: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    kv_cache: Tensor | None = None,
    slot_mapping: Tensor | None = None,
    kv_scales: Tensor | None = None,
) -> None:
    """Norm the heads of q and k where there is a norm, turn them to their position, and put k and v into the cache.

    Args:
        qkv: [N, (H + 2 K) * D], q of all heads, then k, then v; q and k are written in place, v is left alone.
        positions: [N] int, the place of each token in its request.
        rotations: [max_len, D / 2, 2] float32: cos and sin of each position and pair. The pair lies side by side, at
            2i and 2i + 1 of a head.
        num_heads, num_kv_heads, head_dim: H, K, D.
        norm_weight: [H + K, D] of an RMSNorm over each head before the rotation, which rounds to the dtype before the
            weight and after, or None.
        eps: of that norm.
        kv_cache: [num_blocks, block_size, 2, K, D] of one layer, index 0 of dimension 2 is K; the dtype of qkv, int8 or
            float8_e4m3fn. None: there is none to write.
        slot_mapping: [N] int64, block * block_size + offset; -1 writes nothing.
        kv_scales: [num_blocks, block_size, 2, K] float32, of an 8-bit cache: a stored vector times its scale is the
            vector. The scale is its largest magnitude over the type's; zeros have scale 0.
    """
    num_tokens = len(qkv)
    heads = qkv.view(num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    turned = heads[:, : num_heads + num_kv_heads]
    if norm_weight is not None:
        # One weight a head; the norm itself has none.
        normed = rms_norm_reference(turned, torch.ones_like(norm_weight[0]), eps=eps)
        turned.copy_(normed * norm_weight)
    # [N, 1, D / 2]
    cos, sin = (rotations[positions.long()][:, None, :, i].double() for i in (0, 1))
    first, second = turned[..., 0::2].double(), turned[..., 1::2].double()
    turned.copy_(torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(2))
    if kv_cache is None:
        return
    assert slot_mapping is not None
    block_size = kv_cache.shape[1]
    kv_N2KD = heads[:, num_heads:].view(num_tokens, 2, num_kv_heads, head_dim)
    for kv_2KD, slot in zip(kv_N2KD, slot_mapping.tolist(), strict=True):
        if slot < 0:
            continue
        place = divmod(slot, block_size)
        if kv_scales is None:
            kv_cache[place] = kv_2KD
        else:
            kv_cache[place], kv_scales[place] = quantize_reference(kv_2KD, kv_cache.dtype)


def quantize_reference(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Vectors in 8 bits, each with a scale of its own.

    Args:
        x: [..., D], any float dtype.
        dtype: int8 or float8_e4m3fn.

    Returns:
        [..., D] of that dtype, and scales [...] float32, 0 where a vector is zero; in float32, whose roundings are part
        of the meaning.
    """
    wide = x.float()
    scale = wide.abs().amax(dim=-1) / LARGEST[dtype]
    scaled = wide / torch.where(scale > 0, scale, 1.0)[..., None]
    return (scaled.round() if dtype is torch.int8 else scaled).to(dtype), scale
