"""Drafting weights of the right shapes with random values, for tiny targets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def save_medusa(folder: Path, target: Path, *, num_heads: int = 4, num_blocks: int = 1, **changes: Any) -> Path:
    """Medusa heads for a target's folder; `changes` go to config.json."""
    config = _config(target, changes) | {"architectures": ["MedusaHeads"]}
    config = {**config, "num_heads": num_heads, "num_blocks": num_blocks, **changes}
    hidden = config["hidden_size"]
    generator = torch.Generator().manual_seed(0)
    tensors = {"embed_proj.weight": torch.randn(hidden, hidden, generator=generator) * 0.1}
    for head in range(num_heads):
        for block in range(num_blocks):
            name = f"heads.{head}.{block}.linear"
            tensors[f"{name}.weight"] = torch.randn(hidden, hidden, generator=generator) * 0.1
            tensors[f"{name}.bias"] = torch.randn(hidden, generator=generator) * 0.1
        tensors[f"heads.{head}.{num_blocks}.weight"] = torch.eye(hidden)
    return _save(folder, config, tensors)


def save_eagle(folder: Path, target: Path, **changes: Any) -> Path:
    """An EAGLE layer for a target's folder: the target's own last layer, which is right now and then."""
    shape = json.loads((target / "config.json").read_text())
    config = {**shape, **_config(target, changes), "architectures": ["EagleHead"], "num_hidden_layers": 1, **changes}
    weights = load_file(target / "model.safetensors")
    last = f"model.layers.{shape['num_hidden_layers'] - 1}."
    tensors = {name.replace(last, "layers.0."): tensor for name, tensor in weights.items() if last in name}
    hidden = shape["hidden_size"]
    tensors["norm.weight"] = weights["model.norm.weight"]
    tensors["fc.weight"] = torch.cat([0.3 * torch.eye(hidden), torch.eye(hidden)], dim=1)
    return _save(folder, config, tensors)


def _config(target: Path, changes: dict[str, Any]) -> dict[str, Any]:
    shape = json.loads((target / "config.json").read_text())
    digest = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    return {"hidden_size": shape["hidden_size"], "vocab_size": shape["vocab_size"], "target_sha256": digest, **changes}


def _save(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    vocab_size = config["vocab_size"]
    order = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(1))
    save_file({**{name: tensor.contiguous() for name, tensor in tensors.items()}, "token_order": order},
              folder / "model.safetensors")  # fmt: skip
    return folder
