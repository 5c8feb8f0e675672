"""One decoder for Llama, Mistral, Qwen2 and Qwen3, driven by a `ModelSpec`.

It works on packed tokens: N tokens of any number of requests, one row each, no padding, no batch dimension. Attention
is a callable made for each step, so this file knows nothing of caches, blocks or requests.

Plain classes, no `nn.Module`: at one token a step the interpreter's and PyTorch's cost of each call is most of the
time, so q, k and v are one product, gate and up are one, the rotation is one in place, and the residual stream is
updated in place.

Shapes: N tokens, C hidden size, H query heads, K key/value heads, D head size, I feed-forward size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from minivllm.layers.base import LayerOps, Rotary
from minivllm.models.rope import interleave_pairs, rotation_table
from minivllm.models.spec import ModelSpec
from minivllm.quantization.base import QuantizationScheme

# (qkv, layer, rotary, at) -> [N, H * D]. A row of qkv, [N, (H + 2 K) * D] contiguous, is q of all heads, then k, then
# v: one buffer, so that k and v of a token can go to the cache in one write. q and k are not rotated yet, so that a
# kernel can rotate and write at once: `rotary.rotate_(qkv, at)` is what is due. qkv may not be kept after the call.
Attend = Callable[[Tensor, int, Rotary, Any], Tensor]


class Model(Protocol):
    """What the runner needs of a model."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and K/V."""
        ...

    @property
    def max_len(self) -> int:
        """Positions run over [0, max_len)."""
        ...

    @property
    def weights_bytes(self) -> int: ...

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: Attend,
        on_layer: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            token_ids: [N] int64. positions: [N] int64, place of each token in its request.
            attend: rotation and attention over the step's requests, one call a layer.
            on_layer: sees (layer, [N, C]) after each layer, before the final norm.

        Returns:
            [N, C].
        """
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[M, C] -> [M, V], in the dtype of the activations. Rows are picked by the caller, as the head is the widest
        product of all."""
        ...


class WeightSource(Protocol):
    """Where tensors come from, each taken once."""

    def take(self, name: str) -> Tensor:
        """The tensor of this Hugging Face name, in its right shape, on the device and in the dtype of the model."""
        ...


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint of this shape, by Hugging Face's names."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        for name, size in (("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size)):
            shapes[f"{prefix}.self_attn.{name}.weight"] = (size, hidden)
            if spec.attention_bias:
                shapes[f"{prefix}.self_attn.{name}.bias"] = (size,)
        if spec.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (spec.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (spec.head_dim,)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, q_size)
        if spec.output_bias:
            shapes[f"{prefix}.self_attn.o_proj.bias"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes


class DecoderLayer:
    """The weights of one layer, and what is done with them."""

    __slots__ = ("down", "gate_up", "input_norm", "o", "post_norm", "qkv", "rotary")

    def __init__(
        self,
        spec: ModelSpec,
        layer: int,
        source: WeightSource,
        scheme: QuantizationScheme,
        ops: LayerOps,
        rotations: Tensor,
    ) -> None:
        hf = f"model.layers.{layer}"
        ours = f"layers.{layer}"
        self.input_norm = ops.make_norm(source.take(f"{hf}.input_layernorm.weight"), spec.rms_norm_eps)
        bias = _fused_qkv(spec, hf, "bias", source) if spec.attention_bias else None
        self.qkv = scheme.make_linear(f"{ours}.qkv", _fused_qkv(spec, hf, "weight", source), bias)
        norm_weight = _fused_qk_norm(spec, hf, source) if spec.qk_norm else None
        qk_heads = spec.num_heads + spec.num_kv_heads
        self.rotary = ops.make_rotary(rotations, qk_heads, norm_weight, spec.rms_norm_eps)
        bias = source.take(f"{hf}.self_attn.o_proj.bias") if spec.output_bias else None
        self.o = scheme.make_linear(f"{ours}.o", source.take(f"{hf}.self_attn.o_proj.weight"), bias)
        self.post_norm = ops.make_norm(source.take(f"{hf}.post_attention_layernorm.weight"), spec.rms_norm_eps)
        gate_up = torch.cat([source.take(f"{hf}.mlp.{name}_proj.weight") for name in ("gate", "up")])
        self.gate_up = scheme.make_linear(f"{ours}.gate_up", gate_up, None)
        self.down = scheme.make_linear(f"{ours}.down", source.take(f"{hf}.mlp.down_proj.weight"), None)

    @property
    def weight_bytes(self) -> int:
        parts = (self.input_norm, self.qkv, self.rotary, self.o, self.post_norm, self.gate_up, self.down)
        return sum(part.weight_bytes for part in parts)


def _fused_qkv(spec: ModelSpec, hf: str, kind: str, source: WeightSource) -> Tensor:
    """[(H + 2 K) * D, C] weight or [(H + 2 K) * D] bias, q and k in interleaved pairs (see `rope`)."""
    q, k, v = (source.take(f"{hf}.self_attn.{name}_proj.{kind}") for name in "qkv")
    return torch.cat([interleave_pairs(q, spec.head_dim), interleave_pairs(k, spec.head_dim), v])


def _fused_qk_norm(spec: ModelSpec, hf: str, source: WeightSource) -> Tensor:
    """[H + K, D], the weight of one norm for the heads of q and k together."""
    q, k = (interleave_pairs(source.take(f"{hf}.self_attn.{name}_norm.weight"), spec.head_dim) for name in "qk")
    return torch.cat([q.expand(spec.num_heads, -1), k.expand(spec.num_kv_heads, -1)])


class Llama:
    """The decoder.

    Args:
        spec: its shape.
        source: its tensors; they are taken layer by layer, so at most one layer is alive twice.
        scheme: how projections are stored and multiplied.
        ops: what computes the rest of a layer.
        max_len: positions that the rotation table covers.
    """

    def __init__(
        self, spec: ModelSpec, source: WeightSource, scheme: QuantizationScheme, ops: LayerOps, max_len: int
    ) -> None:
        self.spec = spec
        self.max_len = max_len
        embedding = source.take("model.embed_tokens.weight")
        # [max_len, 1, D / 2]
        rotations = rotation_table(spec.rope, spec.head_dim, max_len).to(embedding.device)
        self.layers = [DecoderLayer(spec, i, source, scheme, ops, rotations) for i in range(spec.num_layers)]
        self.norm = ops.make_norm(source.take("model.norm.weight"), spec.rms_norm_eps)
        self._silu_and_mul = ops.silu_and_mul
        head = embedding if spec.tie_word_embeddings else source.take("lm_head.weight")
        self.lm_head = scheme.make_linear("lm_head", head, None)
        # Where the head keeps the tied weight unchanged, rows are looked up in the head's own memory.
        shared = self.lm_head.look_up if spec.tie_word_embeddings else None
        # [N] int64 -> [N, C], a new tensor
        self.embed = shared or (lambda token_ids: embedding.index_select(0, token_ids))
        self.dtype = embedding.dtype
        self.weights_bytes = (
            (0 if shared else embedding.nbytes)
            + sum(layer.weight_bytes for layer in self.layers)
            + self.norm.weight_bytes
            + self.lm_head.weight_bytes
        )
        # A layer ends with the norm that the next one begins with, as the residual sum is fused into it.
        next_norms = [layer.input_norm for layer in self.layers[1:]] + [self.norm]
        self._layers_and_next_norms = list(zip(self.layers, next_norms, strict=True))

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: Attend,
        on_layer: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        at = self.layers[0].rotary.at(positions)
        residual = self.embed(token_ids)
        x = self.layers[0].input_norm(residual)
        for index, (layer, next_norm) in enumerate(self._layers_and_next_norms):
            qkv = layer.qkv(x)
            x = layer.post_norm.add(layer.o(attend(qkv, index, layer.rotary, at)), residual)
            x = layer.down(self._silu_and_mul(layer.gate_up(x)))
            if on_layer is not None:
                on_layer(index, residual + x)
            x = next_norm.add(x, residual)
        return x

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)
