"""What a model is, as numbers: read from a Hugging Face config and checked, without torch.

One decoder serves four families. They differ in so little that the differences are fields here: biases on q, k, v
(Qwen2) or on all four attention projections (Llama's `attention_bias`), a norm on every head of q and k (Qwen3),
a sliding window (Mistral, some Qwen layers), and how rotary frequencies are stretched for a longer context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minivllm.config import DTYPES
from minivllm.models.fields import Fields

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
# Layouts of quantized weights that `models.quantized` reads.
QUANT_METHODS = ("gptq", "awq", "compressed-tensors")

# Hugging Face's own defaults, for files that leave a key out.
_ROPE_THETA = 10_000.0
_SLIDING_WINDOW = 4096
_MAX_WINDOW_LAYERS = 28


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeSpec:
    """Rotary position embedding (arXiv 2104.09864), and how it is stretched beyond the original context.

    Args:
        rope_type: `default`; `linear` divides every frequency by `factor`; `llama3` divides the slow ones only;
            `yarn` (arXiv 2309.00071) does so along a ramp, and scales attention.
        theta: base of the wavelengths.
        factor: new context over original context.
        original_max_position_embeddings: the context that the model was first trained for.
        low_freq_factor, high_freq_factor: `llama3`: turns in the original context below which a frequency is divided
            by `factor`, and above which it is kept.
        beta_fast, beta_slow, truncate: `yarn`: the same two bounds, and whether they are rounded to whole dimensions.
        attention_factor: `yarn`: what cos and sin are multiplied by; from `factor` where None.
        mscale, mscale_all_dim: `yarn`: weights in that formula.
    """

    rope_type: str = "default"
    theta: float = _ROPE_THETA
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The shape of a decoder.

    Args:
        architecture: Hugging Face's class name.
        attention_bias: q, k and v have biases. `output_bias`: the attention's output projection has one.
        qk_norm: RMSNorm over head_dim on every head of q and k, before the rotation.
        sliding_windows: keys that a query sees, itself included; one a layer, None where it sees all.
        dtype: of the checkpoint's weights.
        initializer_range: standard deviation of random weights.
        quant_method: the layout of weights that are quantized in the checkpoint already; None where they are not.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeSpec
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    output_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    dtype: str
    bos_token_id: int | None
    eos_token_ids: frozenset[int]
    initializer_range: float = 0.02
    quant_method: str | None = None

    @property
    def context_length(self) -> int:
        """Longest sequence that the model is meant for. With yarn, files name either the old context or the new one."""
        if self.rope.rope_type != "yarn" or self.rope.original_max_position_embeddings is None:
            return self.max_position_embeddings
        return max(self.max_position_embeddings, int(self.rope.original_max_position_embeddings * self.rope.factor))

    def limit_length(self, max_model_len: int | None) -> int:
        """Longest sequence to serve: the user's `model.max_model_len`, or the model's own limit.

        Raises:
            ValueError: more than the model's own limit.
        """
        if max_model_len is None:
            return self.context_length
        if max_model_len > self.context_length:
            raise ValueError(
                f"model.max_model_len={max_model_len!r}: must be at most {self.context_length}, the model's own context"
            )
        return max_model_len

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any], source: str) -> ModelSpec:
        """Read a Hugging Face config.

        Args:
            mapping: what config.json holds, as transformers 4 or 5 writes it.
            source: the file or config key that it comes from, for messages.

        Raises:
            ValueError: a missing key, or one that asks for something that is not supported.
        """
        fields = Fields(mapping, source)
        architecture = _architecture(fields)
        fields.require(fields.get("hidden_act") in (None, "silu"), "hidden_act", "silu")
        fields.require(not fields.flag("mlp_bias", False), "mlp_bias", "false")

        num_layers = fields.count("num_hidden_layers")
        num_heads = fields.count("num_attention_heads")
        num_kv_heads = fields.count("num_key_value_heads", num_heads)
        divides = num_heads % num_kv_heads == 0
        fields.require(divides, "num_key_value_heads", f"a divisor of num_attention_heads={num_heads}")
        hidden_size = fields.count("hidden_size")
        is_qwen2, is_qwen3 = architecture == "Qwen2ForCausalLM", architecture == "Qwen3ForCausalLM"
        # Qwen3's heads are never hidden_size / num_attention_heads by rule, so there is nothing to fall back on.
        if fields.get("head_dim") is None and not is_qwen3:
            head_dim, rest = divmod(hidden_size, num_heads)
            valid = rest == 0 and head_dim % 2 == 0
            fields.require(valid, "hidden_size", f"an even multiple of num_attention_heads={num_heads}")
        else:
            head_dim = fields.count("head_dim")
            fields.require(head_dim % 2 == 0, "head_dim", "even")

        max_position_embeddings = fields.count("max_position_embeddings")
        has_bias_key = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and fields.flag("attention_bias", False)
        return cls(
            architecture=architecture,
            vocab_size=fields.count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.count("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=fields.number("rms_norm_eps"),
            rope=_rope(fields, max_position_embeddings),
            max_position_embeddings=max_position_embeddings,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            attention_bias=is_qwen2 or has_bias_key,
            output_bias=has_bias_key,
            qk_norm=is_qwen3,
            sliding_windows=_sliding_windows(fields, architecture, num_layers),
            dtype=_dtype(fields),
            bos_token_id=fields.get("bos_token_id"),
            eos_token_ids=token_ids(fields, "eos_token_id"),
            initializer_range=fields.number("initializer_range", 0.02),
            quant_method=_quant_method(fields),
        )


def token_ids(fields: Fields, key: str) -> frozenset[int]:
    """One token id, a list of them, or none."""
    value = fields.get(key)
    ids = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
    valid = all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
    fields.require(valid, key, "a token id or a list of them")
    return frozenset(ids)


def _architecture(fields: Fields) -> str:
    supported = f"one of {', '.join(ARCHITECTURES.values())}"
    names = fields.get("architectures")
    # A shape written by hand may name the family instead of the class.
    if names is None:
        fields.require(fields.get("model_type") in ARCHITECTURES, "model_type", f"one of {', '.join(ARCHITECTURES)}")
        return ARCHITECTURES[fields.get("model_type")]
    known = isinstance(names, (list, tuple)) and len(names) == 1 and names[0] in ARCHITECTURES.values()
    fields.require(known, "architectures", supported)
    return str(names[0])


def _quant_method(fields: Fields) -> str | None:
    fields.require(not fields.get("compression_config"), "compression_config", "named quantization_config")
    quantization = fields.nested("quantization_config")
    if not quantization.mapping:
        return None
    allowed = f"one of {', '.join(QUANT_METHODS)}; of others, load the unquantized model with a quantization of ours"
    quantization.require(quantization.get("quant_method") in QUANT_METHODS, "quant_method", allowed)
    return str(quantization.get("quant_method"))


def _dtype(fields: Fields) -> str:
    key = "dtype" if fields.get("dtype") is not None else "torch_dtype"
    if fields.get(key) is None:
        return "float32"
    name = str(fields.get(key)).removeprefix("torch.")
    fields.require(name in DTYPES, key, f"one of {', '.join(DTYPES)}")
    return name


def _rope(fields: Fields, max_position_embeddings: int) -> RopeSpec:
    # transformers 5 writes `rope_parameters` with theta inside, 4 wrote `rope_scaling` beside `rope_theta`. Where a
    # file has both, transformers reads `rope_scaling`, and so do we.
    rope = fields.nested("rope_scaling" if fields.get("rope_scaling") else "rope_parameters")
    for key, value in rope.mapping.items():
        rope.require(not isinstance(value, Mapping), key, "a number: one rope for all layers is supported")
    type_key = "rope_type" if rope.get("rope_type") is not None else "type"
    rope_type = rope.get(type_key) or "default"
    rope.require(rope_type in ROPE_TYPES, type_key, f"one of {', '.join(ROPE_TYPES)}")
    for where in (fields, rope):
        where.require(where.get("partial_rotary_factor") in (None, 1, 1.0), "partial_rotary_factor", "1 or absent")
    theta = rope.number("rope_theta", fields.number("rope_theta", _ROPE_THETA))
    if rope_type == "default":
        return RopeSpec(theta=theta)
    if rope_type == "linear":
        return RopeSpec(rope_type=rope_type, theta=theta, factor=rope.number("factor"))

    original_key = "original_max_position_embeddings"
    original = fields.count(original_key, rope.count(original_key, max_position_embeddings))
    if rope_type == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        rope.require(high > low, "high_freq_factor", f"above low_freq_factor={low}")
        return RopeSpec(
            rope_type=rope_type,
            theta=theta,
            factor=rope.number("factor"),
            original_max_position_embeddings=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    rope.require(theta > 1, "rope_theta", "above 1")
    return RopeSpec(
        rope_type=rope_type,
        theta=theta,
        factor=rope.number("factor", max_position_embeddings / original),
        original_max_position_embeddings=original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        attention_factor=_optional_number(rope, "attention_factor"),
        mscale=_optional_number(rope, "mscale"),
        mscale_all_dim=_optional_number(rope, "mscale_all_dim"),
    )


def _optional_number(fields: Fields, key: str) -> float | None:
    return None if fields.get(key) is None else fields.number(key)


def _sliding_windows(fields: Fields, architecture: str, num_layers: int) -> tuple[int | None, ...]:
    if architecture == "LlamaForCausalLM":
        return (None,) * num_layers
    if architecture == "MistralForCausalLM":
        fields.require(fields.get("layer_types") is None, "layer_types", "absent: sliding_window is for every layer")
        # A missing key means Hugging Face's default, null means no window.
        window = _window(fields) if "sliding_window" not in fields.mapping or fields.get("sliding_window") else None
        return (window,) * num_layers

    window = _window(fields) if fields.flag("use_sliding_window", False) else None
    kinds = fields.get("layer_types")
    if kinds is None:
        # 0 is a real value here (every layer slides), so `count` does not fit.
        first = fields.get("max_window_layers")
        first = _MAX_WINDOW_LAYERS if first is None else first
        fields.require(isinstance(first, int) and first >= 0, "max_window_layers", "a whole number of 0 or more")
        return tuple(window if layer >= first else None for layer in range(num_layers))
    valid = isinstance(kinds, (list, tuple)) and len(kinds) == num_layers
    valid = valid and all(kind in ("full_attention", "sliding_attention") for kind in kinds)
    fields.require(valid, "layer_types", f"full_attention or sliding_attention for each of {num_layers} layers")
    if window is None:
        fields.require("sliding_attention" not in kinds, "layer_types", "full_attention: use_sliding_window is false")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _window(fields: Fields) -> int:
    return fields.count("sliding_window", _SLIDING_WINDOW)
