"""Hugging Face's safetensors folders: one file or several, checked by their headers before any weight is read.

Weights are read by their place in the file, some megabytes at a time, each piece converted on its way to where it
stays. A mapping of the file would be simpler, and counts what was ever looked at as this process's memory.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minivllm.models.folder import read_json
from minivllm.models.quantized.base import FLOATS, Form, Format, Stored, check_alike, is_projection
from minivllm.quantization.weight import QuantizedWeight

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")
_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
}
# Buffers that old exports kept; they follow from the config.
_HARMLESS = ("rotary_emb.inv_freq",)
# Values of a tensor that are read at once.
_PIECE = 4 * 2**20
# Bytes after whose reading the C library gives back what it holds of freed memory: it keeps tensors of up to 32 MB, and
# what is made of a layer comes in many sizes.
_TRIM_BYTES = 128 * 2**20
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """A tensor in a file: its header, and the byte at which its data begins."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class Checkpoint:
    """The tensors of a folder, a `WeightSource`.

    Args:
        folder: holds model.safetensors, or an index and its shards.
        shapes: every tensor that the model needs, by name.
        device, dtype: of the tensors that `take` gives.
        tied_head: an `lm_head.weight` in the file is a copy of the embedding.
        packing: how quantized weights lie in the files; None where there are none.

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
        packing: Format | None = None,
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._folder = folder
        self._shapes = shapes
        self._packing = packing
        self._untrimmed_bytes = 0
        self._entries: dict[str, _Entry] = {}
        for path in _weight_files(folder):
            self._entries.update(_read_header(path))
        # Of quantized projections, by module.
        self._forms = self._find_forms()
        wanted: dict[str, Stored] = {}
        for name, shape in shapes.items():
            module = name.removesuffix(".weight")
            if module in self._forms:
                wanted |= {f"{module}.{suffix}": stored for suffix, stored in self._forms[module].tensors.items()}
            else:
                # A bias that the model has comes after its weight, and is more than one that may be there.
                wanted[name] = Stored(shape=shape, dtypes=FLOATS)
        self._check(wanted, tied_head)
        modules = [name.removesuffix(".weight") for name in shapes if is_projection(name)]
        check_alike({module: self._forms.get(module) for module in modules}, str(folder), self.stored)
        if tied_head and "lm_head.weight" in self._entries:
            self._check_tied_head()
        for name, stored in wanted.items():
            if stored.need == "blank" and name in self._entries and self.stored(name).any():
                raise ValueError(
                    f"{self._entries[name].path}: tensor {name} is not zero, and the model of config.json has no place "
                    "for it"
                )

    def _find_forms(self) -> dict[str, Form]:
        forms: dict[str, Form] = {}
        for name, shape in self._shapes.items():
            if self._packing is not None and is_projection(name):
                module, (num_outputs, num_inputs) = name.removesuffix(".weight"), shape
                form = self._packing.form(module, (num_outputs, num_inputs), self._entries)
                if form is not None:
                    forms[module] = form
        return forms

    def _check(self, wanted: Mapping[str, Stored], tied_head: bool) -> None:
        missing = [name for name, stored in wanted.items() if stored.need == "required" and name not in self._entries]
        if missing:
            raise ValueError(
                f"{self._folder}: tensor {missing[0]} is missing{_and_more(missing)}: config.json asks for it"
            )
        for name, stored in wanted.items():
            if name not in self._entries:
                continue
            entry = self._entries[name]
            if stored.shape not in (None, entry.shape):
                raise ValueError(
                    f"{entry.path}: tensor {name} has shape {list(entry.shape)}: must be {list(stored.shape or ())} by "
                    "config.json"
                )
            if entry.dtype not in stored.dtypes:
                allowed = stored.dtypes[0] if len(stored.dtypes) == 1 else f"one of {', '.join(stored.dtypes)}"
                raise ValueError(f"{entry.path}: tensor {name} is stored as {entry.dtype}: must be {allowed}")
        known = {*wanted, "lm_head.weight"} if tied_head else set(wanted)
        extra = [name for name in self._entries if name not in known and not name.endswith(_HARMLESS)]
        if extra:
            hint = ": merge the adapter into the weights first" if "lora" in extra[0].lower() else ""
            raise ValueError(
                f"{self._entries[extra[0]].path}: tensor {extra[0]}{_and_more(extra)} has no place in the model of "
                f"config.json{hint}"
            )

    def _check_tied_head(self) -> None:
        names = ("lm_head.weight", "model.embed_tokens.weight")
        is_copy = self._entries[names[0]].shape == self._entries[names[1]].shape and all(
            torch.equal(head.float(), embedding.float())
            for (_, head), (_, embedding) in zip(*map(self._pieces, names), strict=True)
        )
        if not is_copy:
            raise ValueError(
                f"{self._folder}: tensor lm_head.weight differs from model.embed_tokens.weight: "
                f"config.json's tie_word_embeddings=true says that they are one"
            )

    def take(self, name: str) -> Tensor:
        return self._read(name, self._dtype)

    def take_weight(self, name: str) -> Tensor | QuantizedWeight:
        module = name.removesuffix(".weight")
        if module not in self._forms:
            return self.take(name)
        assert self._packing is not None
        num_outputs, num_inputs = self._shapes[name]
        return self._packing.read(
            module, (num_outputs, num_inputs), self._forms[module], lambda suffix: self.stored(f"{module}.{suffix}")
        )

    def stored(self, name: str) -> Tensor:
        """A tensor of the files as it is, on the device."""
        return self._read(name, _DTYPES[self._entries[name].dtype])

    def _read(self, name: str, dtype: torch.dtype) -> Tensor:
        if self._untrimmed_bytes > _TRIM_BYTES and _trim is not None:
            _trim(0)
            self._untrimmed_bytes = 0
        tensor = torch.empty(self._entries[name].shape, dtype=dtype, device=self._device)
        self._untrimmed_bytes += tensor.nbytes
        values = tensor.view(-1)
        for start, piece in self._pieces(name):
            values[start : start + len(piece)] = piece
        return tensor

    def _pieces(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(first value, [n] as stored) from the first value to the last. The next piece overwrites this one."""
        entry = self._entries[name]
        num_values, dtype = math.prod(entry.shape), _DTYPES[entry.dtype]
        buffer = torch.empty(min(num_values, _PIECE), dtype=dtype)
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            for start in range(0, num_values, _PIECE):
                piece = buffer[: min(_PIECE, num_values - start)]
                view, num_read = memoryview(piece.view(torch.uint8).numpy()), 0
                while num_read < len(view):
                    count = file.readinto(view[num_read:])
                    if not count:
                        raise ValueError(f"{entry.path}: is damaged at tensor {name}: the file ends within it")
                    num_read += count
                yield start, piece


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


def _read_header(path: Path) -> dict[str, _Entry]:
    """Every tensor of a file, by name."""
    try:
        # Its checks are thorough: sizes, places, the end of the file.
        with safe_open(path, framework="pt", device="cpu"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is truncated or no safetensors file: {error}") from error
    with path.open("rb") as file:
        # Eight bytes of length, the header in JSON, the data; places are counted from where the data begins.
        num_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(num_bytes))
    header.pop("__metadata__", None)
    return {
        name: _Entry(
            path=path,
            dtype=value["dtype"],
            shape=tuple(value["shape"]),
            start=8 + num_bytes + value["data_offsets"][0],
        )
        for name, value in header.items()
    }
