"""Bytes counted without torch are the bytes that torch would hold."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulating import CPU, SHAPE, simulated_llm, sizes_of

from minivllm import LLM
from minivllm.config import Component, QuantizationConfig
from minivllm.models.llama import tensor_shapes
from minivllm.models.spec import ModelSpec
from minivllm.simulation.sizes import DTYPE_BYTES, ModelSizes


@st.composite
def _specs(draw: Any) -> ModelSpec:
    family = draw(st.sampled_from(["llama", "qwen2", "qwen3", "mistral"]))
    kv_heads = draw(st.integers(1, 3))
    shape = SHAPE | {
        "architectures": None,
        "model_type": family,
        "vocab_size": draw(st.integers(3, 401)),
        "hidden_size": 8 * draw(st.integers(1, 9)),
        "intermediate_size": draw(st.integers(1, 99)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
        "head_dim": 2 * draw(st.integers(1, 9)),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
    }
    return ModelSpec.from_hf(shape, "test")


@given(_specs(), st.sampled_from(sorted(DTYPE_BYTES)))
@settings(max_examples=60, deadline=None)
def test_weights_take_what_their_tensors_take(spec: ModelSpec, dtype: str) -> None:
    by_tensor = {name: DTYPE_BYTES[dtype] * math.prod(shape) for name, shape in tensor_shapes(spec).items()}
    sizes = sizes_of(spec, dtype)
    assert sizes.weights_bytes == sum(by_tensor.values())
    assert sizes.layers_bytes == sum(size for name, size in by_tensor.items() if "layers" in name or "norm" in name)
    assert sizes.kv_token_bytes == spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * DTYPE_BYTES[dtype]


@pytest.mark.parametrize(
    ("scheme", "kwargs"),
    [
        ("none", {}),
        ("none", {"weight_dtype": "bfloat16"}),
        ("int8_weight_only", {}),
        ("int8_dynamic", {}),
        ("int4", {"group_size": 32}),
        ("int4", {"group_size": 64, "symmetric": True}),
    ],
    ids=lambda value: str(value),
)
def test_a_quantized_model_takes_about_what_the_real_one_does(scheme: str, kwargs: dict[str, Any]) -> None:
    shape = SHAPE | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    quantization = QuantizationConfig.named(scheme, **kwargs)
    options = {"quantization": quantization, "max_model_len": 64, "num_blocks": 8, "block_size": 16}
    real = LLM(weights="random", shape=shape, num_threads=1, **options).engine.memory()
    counted = simulated_llm(shape=shape, **options).engine.memory()
    assert counted.kv_cache_bytes == real.kv_cache_bytes
    assert counted.weights_bytes == pytest.approx(real.weights_bytes, rel=0.05)
    assert real.precision is not None and counted.precision is not None
    assert counted.precision.num_weights == real.precision.num_weights
    assert counted.precision.num_quantized_weights == real.precision.num_quantized_weights
    # Scales of a row are not counted, nor the padding of a layout.
    assert counted.precision.bits_per_weight == pytest.approx(real.precision.bits_per_weight, rel=0.05)


@pytest.mark.parametrize("options", [{"num_blocks": None}, {"num_blocks": None, "memory_bytes": 1 << 20}])
def test_the_pool_of_a_simulated_cpu_is_that_of_a_real_one(options: dict[str, Any]) -> None:
    options = {"max_model_len": 4096, "max_num_seqs": 60, "block_size": 8} | options
    real = LLM(weights="random", shape=SHAPE, num_threads=1, **options).engine
    assert simulated_llm(hardware=CPU, **options).engine.num_blocks == real.num_blocks


REFUSED = {
    "no scheme of ours": (QuantizationConfig(scheme=Component(target="mine.Sparse")), "'mine.Sparse'.*cannot tell"),
    "no such projection": (QuantizationConfig.named("int4", skip=("layers.9.*",)), "layers.9.*names no projection"),
}


@pytest.mark.parametrize(("quantization", "says"), REFUSED.values(), ids=list(REFUSED))
def test_a_precision_that_cannot_be_counted_is_one_line(quantization: QuantizationConfig, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        simulated_llm(quantization=quantization)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_quantized_already_is_refused() -> None:
    shape = {**SHAPE, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 16}}
    with pytest.raises(ValueError, match=re.escape("name the unquantized model")):
        ModelSizes.of(ModelSpec.from_hf(shape, "test"), "float32", QuantizationConfig())
