"""Hugging Face's safetensors folders: one file or several, checked by their headers before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minivllm.models.folder import read_json

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")
_STORED_DTYPES = ("F32", "BF16", "F16")
# Buffers that old exports kept; they follow from the config.
_HARMLESS = ("rotary_emb.inv_freq",)


class Checkpoint:
    """The tensors of a folder, a `WeightSource`.

    Args:
        folder: holds model.safetensors, or an index and its shards.
        shapes: every tensor that the model needs, by name.
        device, dtype: of the tensors that `take` gives.
        tied_head: an `lm_head.weight` in the file is a copy of the embedding.

    Raises:
        ValueError: no weights, a damaged or missing file, and a tensor that is missing, misshapen, of a dtype that is
            not supported, or that this model has no use for.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        device: str,
        dtype: torch.dtype,
        tied_head: bool = False,
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._files: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        for path in _weight_files(folder):
            file = _open(path)
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                self._files[name] = file
                self._paths[name] = path
        self._check(folder, shapes, tied_head)
        if tied_head and "lm_head.weight" in self._files:
            self._check_tied_head(folder)

    def _check(self, folder: Path, shapes: Mapping[str, tuple[int, ...]], tied_head: bool) -> None:
        missing = [name for name in shapes if name not in self._files]
        if missing:
            raise ValueError(f"{folder}: tensor {missing[0]} is missing{_and_more(missing)}: config.json asks for it")
        for name, wanted in shapes.items():
            header = self._files[name].get_slice(name)
            got = tuple(header.get_shape())
            if got != wanted:
                raise ValueError(
                    f"{self._paths[name]}: tensor {name} has shape {list(got)}: must be {list(wanted)} by config.json"
                )
            if header.get_dtype() not in _STORED_DTYPES:
                raise ValueError(
                    f"{self._paths[name]}: tensor {name} is stored as {header.get_dtype()}: "
                    f"must be one of {', '.join(_STORED_DTYPES)}"
                )
        known = {*shapes, "lm_head.weight"} if tied_head else set(shapes)
        extra = [name for name in self._files if name not in known and not name.endswith(_HARMLESS)]
        if extra:
            hint = ": merge the adapter into the weights first" if "lora" in extra[0].lower() else ""
            raise ValueError(
                f"{self._paths[extra[0]]}: tensor {extra[0]}{_and_more(extra)} has no place in the model of "
                f"config.json{hint}"
            )

    def _check_tied_head(self, folder: Path) -> None:
        if not torch.equal(self._read("lm_head.weight"), self._read("model.embed_tokens.weight")):
            raise ValueError(
                f"{folder}: tensor lm_head.weight differs from model.embed_tokens.weight: "
                f"config.json's tie_word_embeddings=true says that they are one"
            )

    def _read(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._files[name].get_tensor(name)
            return tensor
        except SafetensorError as error:
            raise ValueError(f"{self._paths[name]}: is damaged at tensor {name}: {error}") from error

    def take(self, name: str) -> Tensor:
        # The handle maps the file and `get_tensor` copies out of the mapping, so nothing is kept here.
        return self._read(name).to(device=self._device, dtype=self._dtype)

    def take_weight(self, name: str) -> Tensor:
        return self.take(name)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index_file = folder / _INDEX
    if index_file.is_file():
        weight_map = read_json(index_file).get("weight_map")
        names_strings = isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values())
        if not weight_map or not names_strings:
            raise ValueError(f"{index_file}: weight_map must be an object of tensor names and file names")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise ValueError(f"{folder}: shard {absent[0]} is missing{_and_more(absent)}: {_INDEX} names it")
        return files
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder}: weights are pickled ({pickles[0]}{_and_more(pickles)}): must be converted to safetensors first "
            f"(transformers' save_pretrained does it)"
        )
    raise ValueError(f"{folder}: has no weights: must hold {_SINGLE} or {_INDEX}")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is truncated or no safetensors file: {error}") from error
