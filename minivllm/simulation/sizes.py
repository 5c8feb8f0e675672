"""What a model takes, in bytes: counted from its shape, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from minivllm.config import QuantizationConfig
from minivllm.models.spec import ModelSpec
from minivllm.quantization.precision import Precision

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_OURS = "minivllm.quantization."


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """Of one model in one precision.

    Args:
        dtype: of activations and K/V, and of the weights that are not quantized.
        product_dtype: what quantized projections are multiplied in: `dtype`, `int8` or `fp8`.
        layers_bytes: weights, biases and norms of all layers, and the last norm.
        head_bytes: of the head, which is read whole where a token is sampled.
        embedding_bytes: of the embedding; 0 where it is the head.
        row_bytes: one row of the embedding.
        kv_token_bytes: K and V of one token, all layers.
        precision: of the projections.
    """

    dtype: str
    product_dtype: str
    layers_bytes: int
    head_bytes: int
    embedding_bytes: int
    row_bytes: int
    kv_token_bytes: int
    precision: Precision

    @property
    def weights_bytes(self) -> int:
        return self.layers_bytes + self.head_bytes + self.embedding_bytes

    @classmethod
    def of(cls, spec: ModelSpec, dtype: str, quantization: QuantizationConfig) -> ModelSizes:
        """Count.

        Raises:
            ValueError: how many bits a quantization takes cannot be told.
        """
        if spec.quant_method is not None:
            raise ValueError(
                f"model: its weights are quantized already ({spec.quant_method}), and a simulation cannot tell their "
                "size: name the unquantized model, and a quantization of ours"
            )
        scheme = _Scheme.of(quantization, dtype)
        size = DTYPE_BYTES[dtype]
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        hidden, inner = spec.hidden_size, spec.intermediate_size
        parts = {
            "qkv": hidden * (q_size + 2 * kv_size),
            "o": q_size * hidden,
            "gate_up": hidden * 2 * inner,
            "down": inner * hidden,
        }
        head = spec.vocab_size * hidden
        projections = {f"layers.{i}.{part}": count for i in range(spec.num_layers) for part, count in parts.items()}
        skipped = _skipped(projections, quantization.skip, spec.num_layers)
        # What stays as it is has the dtype that all weights have.
        plain = scheme.bits_of("") if scheme.name == "none" else 8 * size
        stored = {
            name: round(count * (plain if name in skipped else scheme.bits_of(name)) / 8)
            for name, count in (projections | {"lm_head": head}).items()
        }
        covered = (projections | {"lm_head": head}).keys() - skipped
        num_weights = sum(count for name, count in (projections | {"lm_head": head}).items() if name in covered)
        num_bytes = sum(stored[name] for name in covered)
        in_codes = scheme.name != "none"
        # Norms and biases.
        small = 2 * hidden
        small += 2 * spec.head_dim if spec.qk_norm else 0
        small += q_size + 2 * kv_size if spec.attention_bias else 0
        small += hidden if spec.output_bias else 0
        shares = spec.tie_word_embeddings and (not in_codes or "lm_head" in skipped)
        return cls(
            dtype=dtype,
            product_dtype=scheme.product_dtype,
            layers_bytes=sum(stored[name] for name in projections) + (spec.num_layers * small + hidden) * size,
            head_bytes=stored["lm_head"],
            embedding_bytes=0 if shares else head * size,
            row_bytes=hidden * size,
            kv_token_bytes=spec.num_layers * 2 * kv_size * size,
            precision=Precision(
                name=scheme.name,
                num_weights=num_weights,
                num_bytes=num_bytes,
                num_quantized_weights=num_weights if in_codes else 0,
                num_quantized_bytes=num_bytes if in_codes else 0,
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scheme:
    """One of our schemes, as far as its bytes go.

    Args:
        name: of its module.
        code_bits: of a weight.
        scale_bits: of a group of weights.
        group_size: weights of a group; None is a row, whose scale is lost in the rounding.
        group_sizes: other sizes by name or pattern.
        product_dtype: what is multiplied.
    """

    name: str
    code_bits: float
    product_dtype: str
    scale_bits: float = 0.0
    group_size: int | None = None
    group_sizes: Mapping[str, int]

    def bits_of(self, name: str) -> float:
        own = [size for pattern, size in self.group_sizes.items() if fnmatchcase(name, pattern)]
        size = own[-1] if own else self.group_size
        return self.code_bits + (self.scale_bits / size if size else 0.0)

    @classmethod
    def of(cls, quantization: QuantizationConfig, dtype: str) -> _Scheme:
        """Raises: ValueError: somebody else's scheme."""
        target, kwargs = quantization.scheme.target, quantization.scheme.kwargs
        name = target.removeprefix(_OURS).partition(".")[0] if target.startswith(_OURS) else ""
        found: dict[str, Any] | None = None
        if name == "none":
            found = {"code_bits": 8 * DTYPE_BYTES[kwargs.get("weight_dtype") or dtype]}
        elif name in ("int4", "gptq", "awq"):
            # A scale of 16 bits, and a zero of 8 where codes are not symmetric.
            scale_bits = 16 if kwargs.get("symmetric") else 24
            found = {"code_bits": 4, "scale_bits": scale_bits, "group_size": int(kwargs.get("group_size") or 64)}
        elif name == "nf4":
            # QLoRA (arXiv 2305.14314), section 3: a float32 a block, or 8 bits and a share of a second float32.
            scales = 8 + 32 / 256 if kwargs.get("double_quantization") else 32
            found = {"code_bits": 4, "scale_bits": scales, "group_size": int(kwargs.get("block_size") or 64)}
        elif name == "int8_weight_only":
            found = {"code_bits": 8}
        elif name in ("int8_dynamic", "llm_int8"):
            found = {"code_bits": 8, "product_dtype": "int8"}
        elif name == "fp8":
            found = {"code_bits": 8, "product_dtype": "fp8"}
        if found is None:
            raise ValueError(
                f"quantization._target_={target!r}: a simulation cannot tell its bits a weight: choose a quantization "
                "of ours"
            )
        return cls(**{"name": name, "product_dtype": dtype, "group_sizes": kwargs.get("group_sizes") or {}, **found})


def _skipped(projections: Mapping[str, int], patterns: tuple[str, ...], num_layers: int) -> set[str]:
    """Names that stay as they are, by the rule of `quantization.skip`.

    Raises:
        ValueError: a pattern that names no projection.
    """
    words = {"first": "layers.0.*", "last": f"layers.{num_layers - 1}.*"}
    skipped: set[str] = set()
    for pattern in patterns:
        found = {name for name in (*projections, "lm_head") if fnmatchcase(name, words.get(pattern, pattern))}
        if not found:
            raise ValueError(
                f"quantization.skip={pattern!r}: names no projection: there are layers.0.qkv to "
                f"layers.{num_layers - 1}.down and lm_head, and the words first and last"
            )
        skipped |= found
    return skipped
