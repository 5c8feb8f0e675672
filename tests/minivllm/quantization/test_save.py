"""What is saved loads again: here to the same bits, and in transformers where compressed-tensors is installed."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from minivllm import LLM
from minivllm.config import Component, EngineConfig, ModelConfig, QuantizationConfig
from minivllm.layers.base import Rotary
from minivllm.models import Llama, load_model
from minivllm.models.folder import read_spec
from minivllm.models.loader import open_checkpoint
from minivllm.quantization.base import LinearTarget, QuantizationScheme
from minivllm.quantization.int4 import Int4
from minivllm.quantization.save import save_quantized
from minivllm.quantization.weight import QuantizedWeight, round_to_nearest
from minivllm.runner.kernels import make_ops

# Groups of 32 in all projections; nothing else is a power of two.
SIZES = {
    "vocab_size": 101,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
TEXT = {"path": "random", "num_windows": 2, "window_tokens": 24}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "int4": ("int4", {"group_size": 32}),
    "int4-symmetric": ("int4", {"group_size": 32, "symmetric": True}),
    "int4-own-groups": ("int4", {"group_size": 32, "group_sizes": {"*.o": 64}}),
    "gptq": ("gptq", {"group_size": 32, "calibration": TEXT}),
    "awq": ("awq", {"group_size": 32, "calibration": TEXT}),
    "int8": ("int8_weight_only", {}),
    "int8-dynamic": ("int8_dynamic", {}),
    "smoothquant": ("int8_dynamic", {"smoothquant_alpha": 0.5, "calibration": TEXT}),
}


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of a family: `trained("Qwen2", tie_word_embeddings=True)`."""
    import transformers

    def save(family: str = "Llama", **changes: Any) -> Path:
        torch.manual_seed(3)
        config = getattr(transformers, f"{family}Config")(**{**SIZES, "tie_word_embeddings": False, **changes})
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            parameter.data = 1 + 0.3 * noise if name.endswith("norm.weight") else 0.1 * noise
        model.to(torch.bfloat16).save_pretrained(tmp_path / "trained")
        (tmp_path / "trained" / "tokenizer.json").write_text("{}")
        (tmp_path / "trained" / "notes.md").write_text("not a part of the model")
        return tmp_path / "trained"

    return save


def _config(folder: Path, name: str, skip: tuple[str, ...] = ("lm_head",), **kwargs: Any) -> EngineConfig:
    quantization = QuantizationConfig.named(name, skip=skip, **kwargs)
    return EngineConfig.from_flat(path=str(folder), kernels="torch", quantization=quantization)


def _load(config: EngineConfig, kernels: str = "torch") -> tuple[Llama, dict[str, Tensor | QuantizedWeight]]:
    """A model, and its final weights."""
    kept: dict[str, Tensor | QuantizedWeight] = {}

    def keep(name: str, value: Tensor | QuantizedWeight) -> None:
        kept[name] = value.clone() if isinstance(value, Tensor) else value

    scheme = config.quantization.scheme.make("quantization", QuantizationScheme, target=LinearTarget(kernels=kernels))
    skip, ops = config.quantization.skip, make_ops(kernels)
    model = load_model(config.model, device="cpu", dtype="float32", scheme=scheme, skip=skip, ops=ops, keep=keep)
    return model, kept


def _logits(model: Llama) -> Tensor:
    spec = model.spec

    def attend(qkv: Tensor, layer: int, rotary: Rotary, at: Any) -> Tensor:
        rotary.rotate_(qkv, at)
        sizes = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        q, k, v = qkv.view(len(qkv), -1, spec.head_dim).transpose(0, 1).split(sizes)
        groups = spec.num_heads // spec.num_kv_heads
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)

    with torch.inference_mode():
        return model.compute_logits(model.forward(torch.arange(13) * 5, torch.arange(13), attend))


@pytest.mark.parametrize(
    ("scheme", "family", "changes"),
    [
        ("int4", "Llama", {"attention_bias": True}),
        ("int4-symmetric", "Qwen3", {}),
        ("int4-own-groups", "Qwen2", {"tie_word_embeddings": True}),
        ("gptq", "Qwen3", {"tie_word_embeddings": True}),
        ("awq", "Qwen2", {}),
        ("int8", "Llama", {"attention_bias": True}),
        ("int8-dynamic", "Llama", {}),
        ("smoothquant", "Qwen3", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_codes_scales_and_logits_are_bitwise_those_that_were_saved(
    family: str, changes: dict[str, Any], scheme: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    name, kwargs = SCHEMES[scheme]
    config = _config(trained(family, **changes), name, **kwargs)
    saved = save_quantized(config, tmp_path / "out")
    before, kept = _load(config)
    after, again = _load(_config(tmp_path / "out", "none"))
    assert kept.keys() == again.keys()
    for part, value in kept.items():
        other = again[part]
        if isinstance(value, Tensor):
            assert isinstance(other, Tensor) and torch.equal(value, other), part
            continue
        assert isinstance(other, QuantizedWeight) and other.same_form(value), part
        assert other.scales.dtype == value.scales.dtype, part
        for field in ("codes", "scales", "zeros"):
            ours, theirs = getattr(value, field), getattr(other, field)
            assert ours is theirs is None or torch.equal(ours, theirs), f"{part}.{field}"
    assert torch.equal(_logits(before), _logits(after))
    ours, theirs = before.precision, after.precision
    assert theirs.num_quantized_weights == ours.num_quantized_weights > 0
    assert theirs.bits_per_weight == ours.bits_per_weight
    assert saved.num_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_names_and_rows_are_those_of_hugging_face(trained: Callable[..., Path], tmp_path: Path) -> None:
    import transformers

    source = trained("Qwen3")
    save_quantized(_config(source, "awq", group_size=32, calibration=TEXT), tmp_path / "out")
    spec = read_spec(ModelConfig(path=str(tmp_path / "out")))
    checkpoint = open_checkpoint(tmp_path / "out", spec, device="cpu", dtype=torch.float32)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    state = {}
    for weight in hf_model.state_dict():
        value = checkpoint.take_weight(weight)
        state[weight] = value.dequantize() if isinstance(value, QuantizedWeight) else value
    hf_model.load_state_dict(state)
    with torch.inference_mode():
        wanted = hf_model((torch.arange(13) * 5)[None]).logits[0]
    got = _logits(_load(_config(tmp_path / "out", "none"), kernels="numba")[0])
    assert (got - wanted).abs().max() < 1e-4 * wanted.std()


def test_what_is_left_alone_keeps_its_dtype_and_what_is_changed_keeps_its_bits(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    skip = ("lm_head", "layers.1.down")
    source = trained("Qwen2")
    save_quantized(_config(source, "awq", skip, group_size=32, calibration=TEXT), tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    same = [name for name in before if name in after and torch.equal(before[name], after[name])]
    assert all(after[name].dtype is torch.bfloat16 for name in same)
    unchanged = ("bias", "embed_tokens.weight", "model.norm.weight", "lm_head.weight", "layers.1.mlp.down_proj.weight")
    assert set(same) == {name for name in before if name.endswith(unchanged)}
    changed = {name: after[name].dtype for name in before if name in after and name not in same}
    norms = [f"model.layers.{i}.{part}_layernorm.weight" for i in range(2) for part in ("input", "post_attention")]
    assert changed == dict.fromkeys(norms, torch.float32)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["model.layers.1.mlp.down_proj", "lm_head"]


def test_a_quantized_tied_head_is_not_the_embedding_any_more(trained: Callable[..., Path], tmp_path: Path) -> None:
    config = _config(trained("Qwen3", tie_word_embeddings=True), "int8_weight_only", skip=())
    saved = save_quantized(config, tmp_path / "out")
    assert saved.ignored == ()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    before, after = _load(config)[0], _load(_config(tmp_path / "out", "none"))[0]
    assert torch.equal(_logits(before), _logits(after))
    assert before.weights_bytes == after.weights_bytes


def test_a_large_model_is_written_in_shards(trained: Callable[..., Path], tmp_path: Path) -> None:
    config = _config(trained(), "int8_weight_only")
    one = save_quantized(config, tmp_path / "one")
    many = save_quantized(config, tmp_path / "many", max_shard_bytes=50_000)
    files = sorted(file.name for file in (tmp_path / "many").glob("*.safetensors"))
    assert many.num_files == len(files) > 3 and one.num_files == 1
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert max((tmp_path / "many" / file).stat().st_size for file in files[:-1]) < 60_000
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name, tensor in whole.items():
        assert torch.equal(load_file(tmp_path / "many" / index["weight_map"][name])[name], tensor)
    assert torch.equal(*(_logits(_load(_config(tmp_path / name, "none"))[0]) for name in ("one", "many")))


def test_the_tokenizer_comes_along_and_the_model_generates(trained: Callable[..., Path], tmp_path: Path) -> None:
    config = _config(trained(), "int4", group_size=32)
    save_quantized(config, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    outputs = []
    for engine in (config, _config(tmp_path / "out", "none")):
        llm = LLM.from_config(engine)
        outputs.append(llm.generate({"prompt_token_ids": [3, 5, 7]})[0].outputs[0].token_ids)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("name", "kwargs", "complaint"),
    [
        ("none", {}, "quantization=none: leaves nothing to save: choose one of int4, gptq, awq, int8_weight_only and"),
        (
            "nf4",
            {},
            "quantization=nf4: cannot be saved: it is made anew at each load: int4, gptq, awq, int8_weight_only",
        ),
        ("llm_int8", {}, "quantization=llm_int8: cannot be saved"),
        ("fp8", {}, "quantization=fp8: cannot be saved"),
        ("int4", {"skip": ("*",), "group_size": 32}, "quantization.skip: leaves out every projection"),
        ("int4", {"group_size": 128}, "quantization.group_size=128: does not divide the 96 inputs of layers.0.qkv"),
    ],
)
def test_what_cannot_be_saved_is_one_line_and_leaves_nothing_behind(
    name: str, kwargs: dict[str, Any], complaint: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        save_quantized(_config(trained(), name, **kwargs), tmp_path / "out")
    assert str(caught.value).startswith(complaint) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_a_folder_that_is_not_empty_is_refused_and_an_empty_one_is_filled(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    config = _config(trained(), "int8_weight_only")
    (tmp_path / "out").mkdir()
    save_quantized(config, tmp_path / "out")
    before = (tmp_path / "out" / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"^OUT_FOLDER='.*/out': must be absent or an empty folder$"):
        save_quantized(config, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == before


def test_what_is_quantized_already_or_random_is_refused(trained: Callable[..., Path], tmp_path: Path) -> None:
    save_quantized(_config(trained(), "int8_weight_only"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"is quantized already, in the layout of compressed-tensors: must be a"):
        save_quantized(_config(tmp_path / "out", "int4", group_size=32), tmp_path / "again")
    random = EngineConfig.from_flat(weights="random", shape={**SIZES, "model_type": "llama"}, quantization="int4")
    with pytest.raises(ValueError, match=r"^model\.weights=random: must be checkpoint where weights are saved$"):
        save_quantized(random, tmp_path / "again")


class _Mixed(Int4):
    """8 bits for both, activations too, where it says so."""

    def quantize(self, name: str, weight: Tensor, x: Tensor | None) -> QuantizedWeight:
        is_wide = name.endswith(".down")
        return round_to_nearest(weight, bits=8, dynamic=True) if is_wide else super().quantize(name, weight, x)


def test_a_scheme_of_several_layouts_is_saved_too(
    trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mixed", types.SimpleNamespace(Mixed=_Mixed))  # type: ignore[arg-type]
    scheme = Component(target="mixed.Mixed", kwargs={"group_size": 32})
    config = dataclasses.replace(_config(trained(), "int4"), quantization=QuantizationConfig(scheme=scheme))
    saved = save_quantized(config, tmp_path / "out")
    assert saved.forms == ("int4 in groups of 32 with zeros", "int8 by row, 8-bit activations")
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written["format"] == "mixed-precision"
    assert [group["format"] for group in written["config_groups"].values()] == ["pack-quantized", "int-quantized"]
    assert torch.equal(_logits(_load(config)[0]), _logits(_load(_config(tmp_path / "out", "none"))[0]))


@pytest.mark.parametrize("scheme", ["int4", "int4-symmetric", "int4-own-groups", "int8", "int8-dynamic"])
def test_transformers_loads_it_with_compressed_tensors(
    scheme: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    import transformers

    name, kwargs = SCHEMES[scheme]
    kwargs = {**kwargs, "symmetric": True} if scheme == "int4-own-groups" else kwargs
    save_quantized(_config(trained("Qwen3"), name, **kwargs), tmp_path / "out")
    # Packed zeros: with compressed-tensors 0.20, transformers 5.23 reads them on this route only.
    config = transformers.CompressedTensorsConfig(dequantize=True)
    how = {"quantization_config": config} if scheme == "int4" else {}
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, **how)
    model = _load(_config(tmp_path / "out", "none"))[0]
    with torch.inference_mode():
        wanted = hf_model((torch.arange(13) * 5)[None]).logits[0]
    # Both round activations, to 8 bits by slightly other scales or, here and in 4 bits, to bfloat16.
    assert (_logits(model) - wanted).abs().mean() < 0.05 * wanted.std()
