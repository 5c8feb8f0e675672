"""Engines on virtual time, of a model so small that only its scheduling matters."""

from __future__ import annotations

from typing import Any

from minivllm import LLM
from minivllm.component import Component
from minivllm.engine import Engine
from minivllm.models.spec import ModelSpec
from minivllm.simulation.hardware import HardwareConfig
from minivllm.simulation.sizes import ModelSizes

SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1 << 17,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "eos_token_id": 0,
}
CPU = HardwareConfig.named("cpu")
GPU = HardwareConfig.named("h200")


def simulated_llm(*, hardware: HardwareConfig = CPU, shape: dict[str, Any] | None = None, **options: Any) -> LLM:
    """An LLM on virtual time; `step_s`, `token_s` and `request_s` are those of constant steps, where no `step_time` is
    given."""
    prices = {key: options.pop(key) for key in ("step_s", "token_s", "request_s") if key in options}
    constant = Component(target="minivllm.simulation.constant.Constant", kwargs=prices)
    chosen = {"step_time": constant, "num_blocks": 4096, "block_size": 16, **options}
    return LLM(weights="random", shape=shape or SHAPE, device="simulated", hardware=hardware, **chosen)


def simulated_engine(**options: Any) -> Engine:
    return simulated_llm(**options).engine


def sizes_of(spec: ModelSpec, dtype: str = "float32") -> ModelSizes:
    from minivllm.config import QuantizationConfig

    return ModelSizes.of(spec, dtype, QuantizationConfig())
