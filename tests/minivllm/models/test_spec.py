from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from minivllm.models.spec import ModelSpec, RopeSpec


def _make_config(**overrides: Any) -> dict[str, Any]:
    """A config.json as transformers 5 writes it; None drops a key."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 76,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "dtype": "bfloat16",
        "eos_token_id": 1,
    }
    config.update(overrides)
    return {key: value for key, value in config.items() if value is not None}


def _read(**overrides: Any) -> ModelSpec:
    return ModelSpec.from_hf(_make_config(**overrides), "folder/config.json")


def test_a_config_of_transformers_4_means_the_same_as_one_of_transformers_5() -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32}
    new = _read(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **yarn})
    for key in ("type", "rope_type"):
        old = {"dtype": None, "torch_dtype": "bfloat16", "rope_parameters": None, "rope_theta": 1e6}
        assert _read(**old, rope_scaling={key: "yarn", **yarn}) == new
    assert new.rope.theta == 1e6
    assert new.dtype == "bfloat16"


def test_rope_theta_is_ten_thousand_where_no_file_names_it() -> None:
    assert _read(rope_parameters=None).rope == RopeSpec(theta=10_000.0)
    assert _read(rope_parameters=None, rope_theta=7.0).rope == RopeSpec(theta=7.0)


def test_missing_keys_fall_back_as_in_transformers() -> None:
    spec = _read(num_key_value_heads=None, head_dim=None, dtype=None, hidden_act=None, eos_token_id=None)
    assert (spec.num_kv_heads, spec.head_dim, spec.dtype) == (4, 12, "float32")
    assert not spec.tie_word_embeddings
    assert spec.eos_token_ids == frozenset()


def test_a_shape_may_name_its_model_type_instead_of_a_class() -> None:
    assert _read(architectures=None, model_type="qwen2").architecture == "Qwen2ForCausalLM"


@pytest.mark.parametrize(
    ("architecture", "qkv", "output", "qk_norm"),
    [
        ("LlamaForCausalLM", False, False, False),
        ("MistralForCausalLM", False, False, False),
        ("Qwen2ForCausalLM", True, False, False),
        ("Qwen3ForCausalLM", False, False, True),
    ],
)
def test_families_differ_in_biases_and_head_norms(architecture: str, qkv: bool, output: bool, qk_norm: bool) -> None:
    spec = _read(architectures=[architecture])
    assert (spec.attention_bias, spec.output_bias, spec.qk_norm) == (qkv, output, qk_norm)


def test_attention_bias_reaches_all_four_projections_of_llama() -> None:
    spec = _read(attention_bias=True)
    assert spec.attention_bias
    assert spec.output_bias


def test_several_end_tokens_are_all_kept() -> None:
    assert _read(eos_token_id=[5, 6, 5]).eos_token_ids == {5, 6}


@pytest.mark.parametrize(
    ("overrides", "windows"),
    [
        ({}, (4096, 4096, 4096)),
        ({"sliding_window": 11}, (11, 11, 11)),
    ],
)
def test_mistral_slides_in_every_layer(overrides: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert _read(architectures=["MistralForCausalLM"], **overrides).sliding_windows == windows


def test_mistral_with_a_null_window_sees_all() -> None:
    config = {**_make_config(architectures=["MistralForCausalLM"]), "sliding_window": None}
    assert ModelSpec.from_hf(config, "x").sliding_windows == (None, None, None)


@pytest.mark.parametrize(
    ("overrides", "windows"),
    [
        ({"sliding_window": 11}, (None, None, None)),
        ({"sliding_window": 11, "use_sliding_window": True, "max_window_layers": 0}, (11, 11, 11)),
        ({"sliding_window": 11, "use_sliding_window": True, "max_window_layers": 2}, (None, None, 11)),
        ({"sliding_window": 11, "use_sliding_window": True}, (None, None, None)),
        (
            {
                "sliding_window": 11,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (11, None, 11),
        ),
    ],
    ids=["off", "all", "last", "default-first-28", "by-name"],
)
@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_qwen_slides_in_the_layers_that_its_config_names(
    architecture: str, overrides: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert _read(architectures=[architecture], **overrides).sliding_windows == windows


def test_yarn_stretches_the_context_and_other_ropes_do_not() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert _read(rope_parameters=yarn).context_length == 512
    assert _read(rope_parameters={**yarn, "original_max_position_embeddings": 32}).context_length == 128
    assert _read(rope_parameters={"rope_type": "linear", "factor": 4.0}).context_length == 128


def test_a_longer_length_than_the_context_is_refused() -> None:
    spec = _read()
    assert spec.limit_length(None) == spec.limit_length(128) == 128
    assert spec.limit_length(5) == 5
    with pytest.raises(ValueError, match=r"^model\.max_model_len=129: must be at most 128"):
        spec.limit_length(129)


YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures=['GPT2LMHeadModel']: must be one of LlamaForCausalLM,"),
        ({"architectures": "LlamaForCausalLM"}, "architectures='LlamaForCausalLM': must be one of LlamaForCausalLM,"),
        ({"architectures": None, "model_type": "gpt2"}, "model_type='gpt2': must be one of llama, mistral,"),
        ({"architectures": None}, "model_type is missing: must be one of llama,"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu': must be silu"),
        ({"mlp_bias": True}, "mlp_bias=True: must be false"),
        ({"attention_bias": "yes"}, "attention_bias='yes': must be true or false"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config.quant_method is missing: must be one of gptq",
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "quantization_config.quant_method='bitsandbytes': must be one of gptq, awq, compressed-tensors; of others, "
            "load the unquantized model",
        ),
        ({"quantization_config": "gptq"}, "quantization_config='gptq': must be a mapping"),
        ({"compression_config": {"a": 1}}, "compression_config={'a': 1}: must be named quantization_config"),
        ({"hidden_size": None}, "hidden_size is missing: must be a whole number of 1 or more"),
        ({"vocab_size": None}, "vocab_size is missing: must be"),
        ({"intermediate_size": 1.5}, "intermediate_size=1.5: must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0: must be a whole number"),
        ({"num_attention_heads": True}, "num_attention_heads=True: must be a whole number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3: must be a divisor of num_attention_heads=4"),
        ({"head_dim": 7}, "head_dim=7: must be even"),
        ({"head_dim": None, "hidden_size": 50}, "hidden_size=50: must be an even multiple of num_attention_heads=4"),
        ({"head_dim": None, "hidden_size": 12}, "hidden_size=12: must be an even multiple of"),
        ({"head_dim": None, "architectures": ["Qwen3ForCausalLM"]}, "head_dim is missing: must be"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing: must be a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan: must be a number above 0"),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing: must be"),
        ({"dtype": "float8"}, "dtype='float8': must be one of float32,"),
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>': must be a token id or a list of them"),
        ({"rope_parameters": "yarn"}, "rope_parameters='yarn': must be a mapping"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type='longrope': must be one of"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling.type='dynamic': must be one of default, linear,"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention={}: must be a number: one rope"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor is missing: must be a number above 0"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters.low_freq_factor is missing: must be"),
        ({"rope_parameters": {**LLAMA3, "high_freq_factor": 1.0}}, "rope_parameters.high_freq_factor=1.0: must be"),
        ({"rope_parameters": {**YARN, "beta_fast": -1}}, "rope_parameters.beta_fast=-1: must be a number above 0"),
        ({"rope_parameters": {**YARN, "mscale": "a"}}, "rope_parameters.mscale='a': must be a number above 0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor=0.5: must be 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: must be 1 or absent"),
        (
            {"architectures": ["MistralForCausalLM"], "layer_types": ["full_attention"] * 3},
            "layer_types=['full_attention', 'full_attention', 'full_attention']: must be absent",
        ),
        (
            {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"]},
            "layer_types=['full_attention']: must be full_attention or sliding_attention for each of 3 layers",
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention"] * 3},
            "layer_types=['sliding_attention', 'sliding_attention', 'sliding_attention']: must be full_attention",
        ),
        ({"architectures": ["Qwen2ForCausalLM"], "max_window_layers": -1}, "max_window_layers=-1: must be a whole"),
    ],
)
def test_what_is_not_supported_is_one_line_with_file_key_and_value(overrides: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        _read(**overrides)
    assert str(caught.value).startswith(f"folder/config.json: {complaint}")
    assert "\n" not in str(caught.value)


def test_a_shape_is_read_without_torch_or_transformers() -> None:
    code = (
        "import sys, minivllm.models, minivllm.models.spec, minivllm.models.folder\n"
        "loaded = {'torch', 'transformers', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
