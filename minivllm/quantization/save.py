"""Writing what a scheme made of a model: a Hugging Face folder in the layouts of compressed-tensors.

It loads again here, to the same codes, scales and logits, and in engines that know these layouts. Names and rows are
Hugging Face's: q, k and v apart, rotary pairs as they were, norms with the factors that a scheme moved into them. What
the scheme left alone is copied as the checkpoint has it, in its own dtype; a tensor that it changed keeps the dtype of
the activations, as rounding it once more would change the logits.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minivllm.config import EngineConfig
from minivllm.models.checkpoint import Checkpoint
from minivllm.models.folder import read_json, read_spec, resolve_folder
from minivllm.models.llama import tensor_shapes
from minivllm.models.loader import load_model, open_checkpoint, resolve_dtype
from minivllm.models.quantized.base import is_projection
from minivllm.models.quantized.writing import SAVED, WrittenForm, quantization_config, stored_tensors
from minivllm.models.rope import interleave_pairs
from minivllm.models.spec import ModelSpec
from minivllm.quantization.base import IntegerScheme, LinearTarget, QuantizationScheme
from minivllm.quantization.weight import QuantizedWeight
from minivllm.runner.kernels import make_ops
from minivllm.runner.parts import find_kernels

MAX_SHARD_BYTES = 2 * 10**9
# Beside the weights: tokenizer, chat template, generation defaults.
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja")
_OWN = ("config.json", "model.safetensors.index.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What was written.

    Args:
        num_files: of weights; num_bytes: of these files together.
        forms: each kind of weight that is quantized, in words.
        ignored: modules that are not quantized.
    """

    folder: Path
    num_files: int
    num_bytes: int
    forms: tuple[str, ...]
    ignored: tuple[str, ...]


def save_quantized(config: EngineConfig, folder: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> Saved:
    """Load the configured model, and write it as it then is.

    Args:
        config: a checkpoint that is not quantized yet, and a scheme whose codes other engines read.
        folder: what is written; absent or empty.
        max_shard_bytes: of one file of weights, unless a tensor is larger.

    Raises:
        ValueError: a folder that is not empty, a scheme that cannot be saved, and whatever loading refuses.
    """
    _check(config, folder)
    spec = read_spec(config.model)
    assert config.model.path is not None
    source_folder = resolve_folder(config.model.path)
    execution = config.execution
    kernels = find_kernels(config)
    dtype = resolve_dtype(config.model, device=execution.device, dtype=execution.dtype)
    target = LinearTarget(
        kernels=kernels, device=execution.device, dtype=dtype, batch_invariant=execution.batch_invariant
    )
    scheme = config.quantization.scheme.make("quantization", QuantizationScheme, target=target)
    if not isinstance(scheme, IntegerScheme):
        raise ValueError(
            f"quantization={_name(config)}: cannot be saved: has no codes that another engine reads: {SAVED} can"
        )
    if execution.num_threads is not None:
        torch.set_num_threads(execution.num_threads)
    source = open_checkpoint(source_folder, spec, device=execution.device, dtype=dtype)
    # Beside its final place, so that it can be renamed; whoever sees the folder sees it whole.
    scratch = folder.parent / f".{folder.name}.{os.getpid()}.part"
    scratch.mkdir(parents=True)
    try:
        writer = CheckpointWriter(source, spec, scratch, max_shard_bytes=max_shard_bytes)
        load_model(
            config.model,
            device=execution.device,
            dtype=execution.dtype,
            scheme=scheme,
            skip=config.quantization.skip,
            ops=make_ops(kernels),
            keep=writer.keep,
        )
        num_files, num_bytes = writer.finish(read_json(source_folder / "config.json"))
        for place in {source_folder, resolve_folder(config.model.tokenizer or config.model.path)}:
            _copy_beside(place, scratch)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Saved(
        folder=folder,
        num_files=num_files,
        num_bytes=num_bytes,
        forms=tuple(str(form) for form in writer.modules_of),
        ignored=tuple(writer.ignored),
    )


def _name(config: EngineConfig) -> str:
    """Of the scheme, as it is chosen."""
    return config.quantization.scheme.target.split(".")[-2]


def _check(config: EngineConfig, folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"OUT_FOLDER={str(folder)!r}: must be absent or an empty folder")
    if config.model.weights == "random":
        raise ValueError("model.weights=random: must be checkpoint where weights are saved")
    name = _name(config)
    if name == "none":
        raise ValueError(f"quantization=none: leaves nothing to save: choose one of {SAVED}")
    if name in ("nf4", "llm_int8", "fp8"):
        raise ValueError(f"quantization={name}: cannot be saved: it is made anew at each load: {SAVED} can")
    quant_method = read_spec(config.model).quant_method
    if quant_method is not None:
        raise ValueError(
            f"model.path={config.model.path!r}: is quantized already, in the layout of {quant_method}: must be a "
            "checkpoint as trained"
        )


def _copy_beside(place: Path, folder: Path) -> None:
    for pattern in _COPIED:
        for file in place.glob(pattern):
            if file.name not in _OWN and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)


class CheckpointWriter:
    """Takes a model's final weights, as `load_model(keep=...)` tells of them, and writes them.

    Args:
        source: the checkpoint that the model is loaded from.
        spec: its shape.
        folder: exists, empty.
        max_shard_bytes: of one file, unless a tensor is larger.
    """

    def __init__(self, source: Checkpoint, spec: ModelSpec, folder: Path, *, max_shard_bytes: int) -> None:
        self.modules_of: dict[WrittenForm, list[str]] = {}
        self._source = source
        self._spec = spec
        self._folder = folder
        self._max_shard_bytes = max_shard_bytes
        self._shapes = tensor_shapes(spec)
        # Hugging Face's names of weights that are dealt with.
        self._done: set[str] = set()
        self._shard: dict[str, Tensor] = {}
        self._shards: list[dict[str, int]] = []

    def keep(self, name: str, value: Tensor | QuantizedWeight) -> None:
        """One final weight. Nothing of it is held: its memory may be overwritten.

        Args:
            name, value: as in `select.Keep`.

        Raises:
            ValueError: codes of a kind that no other engine reads.
        """
        prefix, _, part = name.rpartition(".")
        hf = f"model.{prefix}" if prefix else "model"
        if part == "qkv":
            spec = self._spec
            sizes = [heads * spec.head_dim for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
            for letter, rows in zip("qkv", torch.arange(sum(sizes)).split(sizes), strict=True):
                rows = rows if letter == "v" else rows[_as_halves(len(rows), spec.head_dim)]
                self._add(f"{hf}.self_attn.{letter}_proj", _rows(value, rows))
        elif part == "gate_up":
            rows = torch.arange(value.shape[0])
            for half, of_half in zip(("gate", "up"), rows.chunk(2), strict=True):
                self._add(f"{hf}.mlp.{half}_proj", _rows(value, of_half))
        elif part == "o":
            self._add(f"{hf}.self_attn.o_proj", value)
        elif part == "down":
            self._add(f"{hf}.mlp.down_proj", value)
        elif part == "lm_head":
            self._add("lm_head", value)
        elif part.endswith("norm") and prefix:
            self._add(f"{hf}.{part.removesuffix('norm')}layernorm", value)
        else:
            self._add(f"{hf}.{part}", value)

    def _add(self, module: str, value: Tensor | QuantizedWeight) -> None:
        name = f"{module}.weight"
        self._done.add(name)
        if isinstance(value, QuantizedWeight):
            for suffix, tensor in stored_tensors(module, value).items():
                self._write(f"{module}.{suffix}", tensor)
            self.modules_of.setdefault(WrittenForm.of(value), []).append(module)
        elif name in self._shapes:
            # Else it is a tied head, which is the embedding.
            stored = self._source.stored(name)
            pieces = zip(stored.split(4096), value.split(4096), strict=True)
            is_as_stored = all(torch.equal(old.to(new.dtype), new) for old, new in pieces)
            self._write(name, stored if is_as_stored else value.clone())

    def _write(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.cpu().contiguous()
        if self._shard and sum(t.nbytes for t in self._shard.values()) + tensor.nbytes > self._max_shard_bytes:
            self._end_shard()
        self._shard[name] = tensor

    def _end_shard(self) -> None:
        save_file(self._shard, self._folder / f"{len(self._shards)}.part", metadata={"format": "pt"})
        self._shards.append({name: tensor.nbytes for name, tensor in self._shard.items()})
        self._shard = {}

    @property
    def ignored(self) -> list[str]:
        """Projections that are not quantized."""
        modules = [name.removesuffix(".weight") for name in self._shapes if is_projection(name)]
        modules += ["lm_head"] * ("lm_head" not in modules)
        quantized = {module for of_form in self.modules_of.values() for module in of_form}
        return [module for module in modules if module not in quantized]

    def finish(self, config: dict[str, Any]) -> tuple[int, int]:
        """Write what nothing was told of, biases and norms of heads, and the config.

        Args:
            config: the checkpoint's own config.json.

        Returns:
            Files of weights, and their bytes.

        Raises:
            ValueError: nothing is quantized.
        """
        if not self.modules_of:
            raise ValueError("quantization.skip: leaves out every projection: nothing is quantized")
        for name in self._shapes:
            if name not in self._done:
                self._write(name, self._source.stored(name))
        self._end_shard()
        names = [f"model-{i + 1:05}-of-{len(self._shards):05}.safetensors" for i in range(len(self._shards))]
        names = ["model.safetensors"] if len(names) == 1 else names
        for i, name in enumerate(names):
            (self._folder / f"{i}.part").rename(self._folder / name)
        if len(names) > 1:
            self._write_index(names)
        more: dict[str, Any] = {"quantization_config": quantization_config(self.modules_of, self.ignored)}
        # A quantized head is not the embedding any more.
        if self._spec.tie_word_embeddings and "lm_head" not in self.ignored:
            more["tie_word_embeddings"] = False
        _write_json(self._folder / "config.json", {**config, **more})
        for name in names:
            # safetensors writes files that only their owner can read.
            shutil.copymode(self._folder / "config.json", self._folder / name)
        return len(names), sum((self._folder / name).stat().st_size for name in names)

    def _write_index(self, names: list[str]) -> None:
        weight_map = {tensor: name for name, shard in zip(names, self._shards, strict=True) for tensor in shard}
        total = sum(size for shard in self._shards for size in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(self._folder / "model.safetensors.index.json", index)


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _as_halves(num_rows: int, head_dim: int) -> Tensor:
    """Where rows in interleaved pairs are to be taken from, so that each head has its two halves again (see `rope`)."""
    return interleave_pairs(torch.arange(num_rows), head_dim).argsort()


def _rows(value: Tensor | QuantizedWeight, rows: Tensor) -> Tensor | QuantizedWeight:
    if isinstance(value, QuantizedWeight):
        return value.rows(rows.to(value.codes.device))
    return value.index_select(0, rows.to(value.device))
