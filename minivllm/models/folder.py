"""From `model.path` to a folder on this disk, and from its config.json to a `ModelSpec`. No torch, no transformers."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minivllm.config import ModelConfig
from minivllm.models.fields import Fields
from minivllm.models.spec import ModelSpec, token_ids

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja"]


def resolve_folder(path: str) -> Path:
    """Find the model's folder: a local one, else a snapshot of a hub id (from the hub's cache where it is there).

    Raises:
        ValueError: no such folder, and no such model on a hub that can be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"model.path={path!r}: must be a folder, not a file")
    if not _HUB_ID.fullmatch(path):
        raise ValueError(f"model.path={path!r}: must be an existing folder or a hub id such as owner/name")

    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=_HUB_FILES))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"model.path={path!r}: must be an existing folder, or a hub id in the cache or on a hub in reach: {reason}"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds one mapping.

    Raises:
        ValueError: it cannot be read, is no JSON, or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{file}: is no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file}: must hold a JSON object, not {type(value).__name__}")
    return value


def read_spec(config: ModelConfig) -> ModelSpec:
    """The shape of the configured model: `model.shape`, or config.json of its folder.

    generation_config.json may add end tokens: chat models end a turn with another token than a text.

    Raises:
        ValueError: no folder, no config.json, or something in it that is not supported.
    """
    if config.weights == "random" and config.shape is not None:
        return _spec(config, config.shape, "model.shape")
    assert config.path is not None, "ModelConfig refuses this"
    folder = resolve_folder(config.path)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"model.path={config.path!r}: must be a Hugging Face model folder, but has no config.json")
    spec = _spec(config, read_json(file), str(file))
    generation_file = folder / "generation_config.json"
    if not generation_file.is_file():
        return spec
    more = token_ids(Fields(read_json(generation_file), str(generation_file)), "eos_token_id")
    return dataclasses.replace(spec, eos_token_ids=spec.eos_token_ids | more)


def _spec(config: ModelConfig, mapping: Mapping[str, Any], source: str) -> ModelSpec:
    spec = ModelSpec.from_hf(mapping, source)
    if config.weights == "random" and spec.quant_method is not None:
        raise ValueError(
            f"{source}: quantization_config.quant_method={spec.quant_method!r}: must be absent where "
            "model.weights=random: choose a quantization of ours, which rounds random weights too"
        )
    return spec
