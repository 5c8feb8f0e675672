"""One decoder for Llama, Mistral, Qwen2 and Qwen3, driven by a `ModelSpec`.

It works on packed tokens: N tokens of any number of requests, one row each, no padding, no batch dimension. Attention
is a callable made for each step, so this file knows nothing of caches, blocks or requests.

Plain classes, no `nn.Module`: at one token a step the interpreter's and PyTorch's cost of each call is most of the
time, so q, k and v are one product, gate and up are one, the rotation is one in place, and the residual stream is
updated in place.

Shapes: N tokens, C hidden size, H query heads, K key/value heads, D head size, I feed-forward size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from minivllm.layers.base import LayerOps, Norm, Rotary
from minivllm.models.flow import Flow
from minivllm.models.rope import interleave_pairs, rotation_table
from minivllm.models.spec import ModelSpec
from minivllm.quantization.base import LinearOp
from minivllm.quantization.select import Selection
from minivllm.quantization.weight import QuantizedWeight

# (qkv, layer, rotary, at) -> [N, H * D]. A row of qkv, [N, (H + 2 K) * D] contiguous, is q of all heads, then k, then
# v: one buffer, so that k and v of a token can go to the cache in one write. q and k are not rotated yet, so that a
# kernel can rotate and write at once: `rotary.rotate_(qkv, at)` is what is due. qkv may not be kept after the call.
Attend = Callable[[Tensor, int, Rotary, Any], Tensor]
Weight: TypeAlias = "Tensor | QuantizedWeight"


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

    def take_weight(self, name: str) -> Tensor | QuantizedWeight:
        """As `take`, for the weight of a projection, which a checkpoint may hold quantized; `name` ends in `.weight`
        either way."""
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
    """The weights of one layer, and what is done with them.

    Args:
        spec, layer: which layer of what.
        source: its tensors.
        selection: how projections are stored and multiplied.
        ops: what computes the rest.
        rotations: of all positions.
        flow: what calibrated schemes watch.
    """

    __slots__ = ("down", "gate_up", "input_norm", "o", "post_norm", "qkv", "rotary")

    def __init__(
        self,
        spec: ModelSpec,
        layer: int,
        source: WeightSource,
        selection: Selection,
        ops: LayerOps,
        rotations: Tensor,
        flow: Flow,
    ) -> None:
        hf = f"model.layers.{layer}"
        ours = f"layers.{layer}"
        eps = spec.rms_norm_eps

        def norm_and_scaled(norm_name: str, name: str, weight: Weight) -> tuple[Norm, Weight]:
            # Before a projection whose columns the scheme wants scaled, the norm's weight takes the division.
            norm_weight = source.take(f"{hf}.{norm_name}layernorm.weight")
            norm = ops.make_norm(norm_weight, eps)
            flow.norm(norm)
            scale = flow.input_scale(selection, name, weight)
            if scale is not None:
                assert isinstance(weight, Tensor)
                # What the norm's dtype made of the division is what the weight gets back.
                divided = (norm_weight.float() / scale).to(norm_weight.dtype)
                scale = torch.where(divided == 0, torch.ones_like(scale), norm_weight.float() / divided.float())
                flow.divide(scale)
                weight = weight.float() * scale
                norm_weight = torch.where(divided == 0, norm_weight, divided)
                norm = ops.make_norm(norm_weight, eps)
            selection.keep(f"{ours}.{norm_name}norm", norm_weight)
            return norm, weight

        bias = _fused_qkv_bias(spec, hf, source) if spec.attention_bias else None
        qkv = _fused_qkv_weight(spec, hf, source)
        self.input_norm, qkv = norm_and_scaled("input_", f"{ours}.qkv", qkv)
        self.qkv: LinearOp = selection.make_linear(f"{ours}.qkv", qkv, bias, flow.x)
        norm_weight = _fused_qk_norm(spec, hf, source) if spec.qk_norm else None
        qk_heads = spec.num_heads + spec.num_kv_heads
        self.rotary = ops.make_rotary(rotations, qk_heads, norm_weight, eps)
        flow.attend(layer, self.qkv, self.rotary)

        bias = source.take(f"{hf}.self_attn.o_proj.bias") if spec.output_bias else None
        o = source.take_weight(f"{hf}.self_attn.o_proj.weight")
        self.o: LinearOp = selection.make_linear(f"{ours}.o", o, bias, flow.x)
        flow.project(self.o)

        gate_up = _joined([source.take_weight(f"{hf}.mlp.{name}_proj.weight") for name in ("gate", "up")])
        down = source.take_weight(f"{hf}.mlp.down_proj.weight")
        self.post_norm, gate_up = norm_and_scaled("post_attention_", f"{ours}.gate_up", gate_up)
        scale = flow.down_scale(selection, f"{ours}.down", gate_up, down)
        if scale is not None:
            assert isinstance(gate_up, Tensor) and isinstance(down, Tensor)
            gate, up = gate_up.float().chunk(2)
            gate_up, down = torch.cat([gate, up / scale[:, None]]), down.float() * scale
        self.gate_up: LinearOp = selection.make_linear(f"{ours}.gate_up", gate_up, None, flow.x)
        flow.activate(self.gate_up)
        self.down: LinearOp = selection.make_linear(f"{ours}.down", down, None, flow.x)
        flow.project(self.down)

    @property
    def weight_bytes(self) -> int:
        parts = (self.input_norm, self.qkv, self.rotary, self.o, self.post_norm, self.gate_up, self.down)
        return sum(part.weight_bytes for part in parts)


def _joined(parts: Sequence[Weight]) -> Weight:
    """Rows of several weights in one."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors)
    quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
    if len(quantized) < len(parts) or not all(part.same_form(quantized[0]) for part in quantized):
        raise ValueError(
            "quantization: a checkpoint must quantize q, k and v alike, and gate and up alike: here each is one product"
        )
    return QuantizedWeight.join(quantized)


def _fused_qkv_weight(spec: ModelSpec, hf: str, source: WeightSource) -> Weight:
    """[(H + 2 K) * D, C], q and k in interleaved pairs (see `rope`)."""
    q, k, v = (source.take_weight(f"{hf}.self_attn.{name}_proj.weight") for name in "qkv")
    return _joined([_interleaved(q, spec.head_dim), _interleaved(k, spec.head_dim), v])


def _interleaved(weight: Weight, head_dim: int) -> Weight:
    if isinstance(weight, Tensor):
        return interleave_pairs(weight, head_dim)
    rows = torch.arange(weight.shape[0], device=weight.codes.device)
    return weight.rows(interleave_pairs(rows, head_dim))


def _fused_qkv_bias(spec: ModelSpec, hf: str, source: WeightSource) -> Tensor:
    """[(H + 2 K) * D], as the weight's rows."""
    q, k, v = (source.take(f"{hf}.self_attn.{name}_proj.bias") for name in "qkv")
    return torch.cat([interleave_pairs(q, spec.head_dim), interleave_pairs(k, spec.head_dim), v])


def _fused_qk_norm(spec: ModelSpec, hf: str, source: WeightSource) -> Tensor:
    """[H + K, D], the weight of one norm for the heads of q and k together."""
    q, k = (interleave_pairs(source.take(f"{hf}.self_attn.{name}_norm.weight"), spec.head_dim) for name in "qk")
    return torch.cat([q.expand(spec.num_heads, -1), k.expand(spec.num_kv_heads, -1)])


class Decoder:
    """The layers and the norm after them: a model without embedding and head.

    Args:
        spec: its shape.
        source: its tensors; they are taken layer by layer, so at most one layer is alive twice.
        selection: how projections are stored and multiplied.
        ops: what computes the rest of a layer.
        max_len: positions that the rotation table covers.
        flow: what calibrated schemes watch.
        device: of the weights.
    """

    def __init__(
        self,
        spec: ModelSpec,
        source: WeightSource,
        selection: Selection,
        ops: LayerOps,
        max_len: int,
        flow: Flow,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.max_len = max_len
        # [max_len, 1, D / 2]
        rotations = rotation_table(spec.rope, spec.head_dim, max_len).to(device)
        self.layers = [DecoderLayer(spec, i, source, selection, ops, rotations, flow) for i in range(spec.num_layers)]
        norm_weight = source.take("model.norm.weight")
        selection.keep("norm", norm_weight)
        self.norm = ops.make_norm(norm_weight, spec.rms_norm_eps)
        flow.norm(self.norm)
        self._silu_and_mul = ops.silu_and_mul
        self.weights_bytes = sum(layer.weight_bytes for layer in self.layers) + self.norm.weight_bytes
        # A layer ends with the norm that the next one begins with, as the residual sum is fused into it.
        next_norms = [layer.input_norm for layer in self.layers[1:]] + [self.norm]
        self._layers_and_next_norms = list(zip(self.layers, next_norms, strict=True))

    def run_layers(
        self,
        residual: Tensor,
        positions: Tensor,
        attend: Attend,
        first: int = 0,
        end: int | None = None,
        on_layer: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Layers [first, end) of the decoder; all the rest where `end` is None.

        Args:
            residual: [N, C], the residual stream before them (the embedding before the first), brought up to date.
            positions, attend, on_layer: as in `forward`.

        Returns:
            [N, C]: the stream after them, through the norm that comes next: that of layer `end`, or the final one.
        """
        at = self.layers[0].rotary.at(positions)
        x = self.layers[first].input_norm(residual)
        for index, (layer, next_norm) in enumerate(self._layers_and_next_norms[first:end], start=first):
            qkv = layer.qkv(x)
            x = layer.post_norm.add(layer.o(attend(qkv, index, layer.rotary, at)), residual)
            x = layer.down(self._silu_and_mul(layer.gate_up(x)))
            if on_layer is not None:
                on_layer(index, residual + x)
            x = next_norm.add(x, residual)
        return x


class Llama(Decoder):
    """The decoder between its embedding and its head.

    Args:
        spec, source, selection, ops, max_len: see `Decoder`.
        start_flow: makes the flow that calibrated schemes watch, from the embedding; nothing flows where None.
    """

    def __init__(
        self,
        spec: ModelSpec,
        source: WeightSource,
        selection: Selection,
        ops: LayerOps,
        max_len: int,
        start_flow: Callable[[Tensor], Flow] | None = None,
    ) -> None:
        embedding = source.take("model.embed_tokens.weight")
        self.dtype = embedding.dtype
        flow = Flow() if start_flow is None else start_flow(embedding)
        super().__init__(spec, source, selection, ops, max_len, flow, embedding.device)
        # A tied head is the embedding once more: the scheme keeps it unchanged and looks rows up in it, or leaves it.
        head = embedding if spec.tie_word_embeddings else source.take_weight("lm_head.weight")
        selection.keep("embed_tokens", embedding)
        self.lm_head: LinearOp = selection.make_linear("lm_head", head, None, flow.x)
        # Where the head keeps the tied weight unchanged, rows are looked up in the head's own memory.
        shared = self.lm_head.look_up if spec.tie_word_embeddings else None
        # [N] int64 -> [N, C], a new tensor
        self.embed = shared or (lambda token_ids: embedding.index_select(0, token_ids))
        self.weights_bytes += (0 if shared else embedding.nbytes) + self.lm_head.weight_bytes
        self.precision = selection.precision()

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: Attend,
        on_layer: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        return self.run_layers(self.embed(token_ids), positions, attend, on_layer=on_layer)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)
