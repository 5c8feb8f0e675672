from __future__ import annotations

import json
from pathlib import Path

import pytest

from minivllm.config import ModelConfig
from minivllm.models import read_spec, resolve_folder

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 1,
}


def _make_folder(tmp_path: Path, **files: str) -> str:
    for stem, text in files.items():
        (tmp_path / f"{stem}.json").write_text(text)
    return str(tmp_path)


def _refusal(path: str) -> str:
    with pytest.raises(ValueError) as caught:
        read_spec(ModelConfig(path=path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_folder(str(tmp_path)) == tmp_path


def test_end_tokens_of_generation_config_are_added(tmp_path: Path) -> None:
    path = _make_folder(tmp_path, config=json.dumps(SHAPE), generation_config='{"eos_token_id": [7, 8]}')
    assert read_spec(ModelConfig(path=path)).eos_token_ids == {1, 7, 8}


def test_a_shape_for_random_weights_needs_no_folder() -> None:
    assert read_spec(ModelConfig(weights="random", shape=SHAPE)).hidden_size == 48
    with pytest.raises(ValueError, match=r"^model\.shape: hidden_size=0: must be a whole number"):
        read_spec(ModelConfig(weights="random", shape={**SHAPE, "hidden_size": 0}))


def test_a_missing_folder_is_named() -> None:
    assert _refusal("/no/such/folder") == (
        "model.path='/no/such/folder': must be an existing folder or a hub id such as owner/name"
    )


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("")
    assert _refusal(str(file)) == f"model.path={str(file)!r}: must be a folder, not a file"


def test_an_unreachable_hub_is_one_line_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(repo_id: str, **options: object) -> str:
        raise LocalEntryNotFoundError("cannot connect\nlong advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    message = _refusal("owner/name")
    assert message.startswith("model.path='owner/name': must be an existing folder, or a hub id")
    assert message.endswith(": cannot connect")


def test_a_hub_id_is_its_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked = []

    def download(repo_id: str, **options: object) -> str:
        asked.append((repo_id, options["allow_patterns"]))
        return _make_folder(tmp_path, config=json.dumps(SHAPE))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert read_spec(ModelConfig(path="owner/name-7B.v0.1")).vocab_size == 97
    assert asked[0][0] == "owner/name-7B.v0.1"
    assert "*.safetensors" in asked[0][1]
    assert not any("bin" in pattern for pattern in asked[0][1])


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "has no config.json"),
        ({"config": "{"}, "config.json: is no valid JSON: Expecting property name"),
        ({"config": "[1]"}, "config.json: must hold a JSON object, not list"),
        ({"config": '{"architectures": ["T5Model"]}'}, "config.json: architectures=['T5Model']: must be one of Llama"),
        ({"config": json.dumps(SHAPE), "generation_config": "nothing"}, "generation_config.json: is no valid JSON"),
        ({"config": json.dumps(SHAPE), "generation_config": '{"eos_token_id": "a"}'}, "eos_token_id='a': must be"),
    ],
)
def test_a_bad_config_names_the_folder_and_what_is_wrong(files: dict[str, str], complaint: str, tmp_path: Path) -> None:
    message = _refusal(_make_folder(tmp_path, **files))
    assert str(tmp_path) in message
    assert complaint in message
