"""Folders as Hugging Face writes them, and folders that something happened to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minivllm.config import ModelConfig
from minivllm.models import Llama, checkpoint, read_spec
from minivllm.models.llama import tensor_shapes
from minivllm.models.loader import open_checkpoint

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
Edit = Callable[[dict[str, Tensor]], Any]


def _edit_tensors(folder: Path, edit: Edit) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def _edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _logits(model: Llama, attend: Any) -> Tensor:
    with torch.inference_mode():
        return model.compute_logits(model.forward(torch.arange(9), torch.arange(9), attend(model.spec, [9])))


def _refusal(load: Callable[..., Llama], folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_hold_the_same_model_as_one_file(
    make_hf_model: Callable[..., Any], load: Callable[..., Llama], make_dense_attend: Any, tmp_path: Path
) -> None:
    hf_model = make_hf_model("Qwen2", head_dim=12)
    hf_model.save_pretrained(tmp_path / "one")
    hf_model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = load(tmp_path / "one"), load(tmp_path / "many")
    assert torch.equal(_logits(one, make_dense_attend), _logits(many, make_dense_attend))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_files_are_widened_exactly(
    dtype: torch.dtype, save_hf_model: Callable[..., Path], load: Callable[..., Llama], make_dense_attend: Any
) -> None:
    folder = save_hf_model(dtype=dtype)
    from_half = load(folder)
    assert from_half.embed(torch.tensor([0])).dtype == torch.float32
    logits = _logits(from_half, make_dense_attend)
    _edit_tensors(folder, lambda tensors: tensors.update({name: t.float() for name, t in tensors.items()}))
    assert torch.equal(logits, _logits(load(folder), make_dense_attend))


def test_auto_dtype_on_a_cpu_is_float32(save_hf_model: Callable[..., Path], load: Callable[..., Llama]) -> None:
    assert load(save_hf_model(dtype=torch.bfloat16), dtype="auto").dtype == torch.float32


def test_a_tied_head_and_its_embedding_share_memory(
    save_hf_model: Callable[..., Path], load: Callable[..., Llama]
) -> None:
    folder = save_hf_model(tie_word_embeddings=True)
    tied, free = load(folder), load(folder)
    # Changing the head changes what is looked up.
    tied.lm_head.weight.zero_()
    hidden = []
    for model in (tied, free):
        model.forward(torch.arange(3), torch.arange(3), lambda *_: torch.zeros(3, 96), lambda _, h: hidden.append(h))
    assert (hidden[0] == 0).all() and (hidden[2] != 0).any()


def test_a_stored_copy_of_a_tied_head_is_fine_and_a_different_one_is_not(
    save_hf_model: Callable[..., Path], load: Callable[..., Llama]
) -> None:
    folder = save_hf_model(tie_word_embeddings=True)
    _edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    load(folder)
    _edit_tensors(folder, lambda t: t["lm_head.weight"].add_(1))
    assert "lm_head.weight differs from model.embed_tokens.weight" in _refusal(load, folder)


def test_old_rotary_buffers_are_ignored(save_hf_model: Callable[..., Path], load: Callable[..., Llama]) -> None:
    folder = save_hf_model()
    _edit_tensors(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(12)}))
    load(folder)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "tensor model.layers.1.mlp.up_proj.weight is missing:"),
        (
            lambda t: [t.pop(f"model.layers.{i}.input_layernorm.weight") for i in range(2)],
            "tensor model.layers.0.input_layernorm.weight is missing (and 1 more):",
        ),
        (lambda t: t.pop("lm_head.weight"), "tensor lm_head.weight is missing"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(47)}),
            "tensor model.norm.weight has shape [47]: must be [48] by config.json",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": torch.ones(96, 48)}),
            "tensor model.layers.0.self_attn.k_proj.weight has shape [96, 48]: must be [48, 48] by config.json",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(96)}),
            "tensor model.layers.0.self_attn.q_proj.bias has no place in the model of config.json",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 48)}),
            "tensor model.layers.0.self_attn.q_proj.lora_A.weight has no place in the model of config.json: merge",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}),
            "tensor model.norm.weight is stored as I8: must be one of F32, BF16, F16",
        ),
    ],
    ids=["missing", "two-missing", "no-head", "norm-shape", "kv-heads", "bias", "lora", "int8"],
)
def test_a_tensor_that_does_not_fit_is_named(
    edit: Edit, complaint: str, save_hf_model: Callable[..., Path], load: Callable[..., Llama]
) -> None:
    folder = save_hf_model()
    _edit_tensors(folder, edit)
    message = _refusal(load, folder)
    assert message.startswith(str(folder))
    assert complaint in message


@pytest.mark.parametrize("kept_bytes", [0, 5, 300, -1])
def test_a_truncated_file_is_named(
    kept_bytes: int, save_hf_model: Callable[..., Path], load: Callable[..., Llama]
) -> None:
    folder = save_hf_model()
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[:kept_bytes])
    assert _refusal(load, folder).startswith(f"{folder / SINGLE}: is truncated or no safetensors file:")


def test_a_truncated_shard_is_named(save_hf_model: Callable[..., Path], load: Callable[..., Llama]) -> None:
    folder = save_hf_model(max_shard_size="20KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-8])
    assert _refusal(load, folder).startswith(f"{shard}: is truncated")


def test_a_missing_shard_is_named(save_hf_model: Callable[..., Path], load: Callable[..., Llama]) -> None:
    folder = save_hf_model(max_shard_size="20KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert _refusal(load, folder) == f"{folder}: shard {shard.name} is missing: {INDEX} names it"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "is no valid JSON"), ("[]", "must hold a JSON object, not list"), ("{}", "weight_map must be an object")],
)
def test_a_broken_index_is_named(
    text: str, complaint: str, save_hf_model: Callable[..., Path], load: Callable[..., Llama]
) -> None:
    folder = save_hf_model(max_shard_size="20KB")
    (folder / INDEX).write_text(text)
    assert _refusal(load, folder).startswith(f"{folder / INDEX}: {complaint}")


def test_pickled_weights_are_refused_with_the_way_out(
    save_hf_model: Callable[..., Path], load: Callable[..., Llama]
) -> None:
    folder = save_hf_model()
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    message = _refusal(load, folder)
    assert message.startswith(f"{folder}: weights are pickled (pytorch_model.bin): must be converted to safetensors")


def test_a_folder_without_weights_is_named(save_hf_model: Callable[..., Path], load: Callable[..., Llama]) -> None:
    folder = save_hf_model()
    (folder / SINGLE).unlink()
    assert _refusal(load, folder) == f"{folder}: has no weights: must hold {SINGLE} or {INDEX}"


def test_a_config_of_another_shape_is_found_before_any_weight_is_read(
    save_hf_model: Callable[..., Path], load: Callable[..., Llama]
) -> None:
    folder = save_hf_model()
    _edit_config(folder, num_hidden_layers=3)
    assert "tensor model.layers.2.input_layernorm.weight is missing (and 8 more)" in _refusal(load, folder)
    _edit_config(folder, num_hidden_layers=1)
    assert "(and 8 more) has no place in the model" in _refusal(load, folder)


@pytest.mark.parametrize("piece", [1, 7, 48, 5000])
def test_a_tensor_read_in_pieces_is_whole(
    piece: int, save_hf_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_hf_model(dtype=torch.bfloat16, tie_word_embeddings=True, num_hidden_layers=1)
    _edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    monkeypatch.setattr(checkpoint, "_PIECE", piece)
    spec = read_spec(ModelConfig(path=str(folder)))
    source = open_checkpoint(folder, spec, device="cpu", dtype=torch.float32)
    for name, tensor in load_file(folder / SINGLE).items():
        assert torch.equal(source.stored(name), tensor) and source.stored(name).dtype is torch.bfloat16
        if name != "lm_head.weight":
            assert torch.equal(source.take(name), tensor.float())


def test_a_file_that_ends_within_a_tensor_after_it_was_checked_is_named(save_hf_model: Callable[..., Path]) -> None:
    folder = save_hf_model()
    spec = read_spec(ModelConfig(path=str(folder)))
    source = open_checkpoint(folder, spec, device="cpu", dtype=torch.float32)
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"model\.safetensors: is damaged at tensor \S+: the file ends within it$"):
        for name in tensor_shapes(spec):
            source.take(name)
