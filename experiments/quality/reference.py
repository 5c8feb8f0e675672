"""The unquantized model's answers: made once a sweep, kept in its folder, read by every point of that model.

`<sweep>/.reference/<key>.safetensors` has the final hidden states of the windows. The reference's logits are made from
them when they are needed, with the checkpoint's own head: of a vocabulary of 152,000 they would be gigabytes. They are
made in the dtype that the reference computed in, so that a point that computes as it did comes to a divergence of 0.
The key is a hash of all that the reference depends on. The tensors are

    hidden      [num_windows, N, C] float32      N = window_tokens - 1
    top1        [num_windows, N] int64
    nll         [num_windows, N] float32
    generated   [num_prompts, output_tokens] int64

and the answers to the task are in the header. A file is renamed into place when it is whole, so two that make it at
once do no harm.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import uuid
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from experiments.quality.evaluation import Evaluation
from experiments.quality.items import Items, text_path
from experiments.quality.settings import QualityConfig
from experiments.results import REFERENCES
from minivllm.config import EngineConfig, ModelConfig
from minivllm.models.checkpoint import Checkpoint
from minivllm.models.folder import read_json, read_spec, resolve_folder
from minivllm.models.llama import tensor_shapes

# Part of the key: another meaning of the items or of the file makes another file.
_VERSION = 1


def can_be_had(model: ModelConfig) -> bool:
    """Whether there is an unquantized model to compare with: not where the checkpoint itself is quantized.

    Raises:
        ValueError: no such model.
    """
    assert model.path is not None, "random weights have no quality"
    config = resolve_folder(model.path) / "config.json"
    return not (config.is_file() and read_json(config).get("quantization_config"))


def path_of(folder: Path, engine: EngineConfig, quality: QualityConfig) -> Path:
    """Where the reference of a point lies, under a sweep's folder.

    Raises:
        ValueError: the text cannot be read.
    """
    settings = {key: value for key, value in dataclasses.asdict(quality).items() if key != "enabled"}
    path = text_path(quality)
    try:
        text = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"quality.text={quality.text!r}: cannot be read: {error.strerror or error}") from error
    depends_on = [_VERSION, dataclasses.asdict(engine.model), settings, text, engine.execution.device]
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()
    return folder / REFERENCES / f"{digest[:16]}.safetensors"


def is_whole(path: Path) -> bool:
    """Whether a reference can be read there."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "items_sha256" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def write(path: Path, items: Items, found: Evaluation, hidden: list[Tensor], dtype: str) -> None:
    """Write a reference and rename it into place.

    Args:
        path: of the file.
        items: that were asked.
        found: what came.
        hidden: [N, C] float32 of each window.
        dtype: that it was computed in.
    """
    tensors = {"generated": torch.tensor(found.generated, dtype=torch.int64)}
    if hidden:
        tensors["hidden"] = torch.stack(hidden)
        tensors["top1"] = torch.stack([window.top1 for window in found.windows])
        tensors["nll"] = torch.stack([window.nll for window in found.windows])
    metadata = {"items_sha256": items.sha256, "answers": json.dumps(found.answers), "dtype": dtype}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of nobody else's, on whichever machine.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Reference:
    """A reference that was read.

    Args:
        path: of the file.
        engine: of the point that is held against it.

    Raises:
        ValueError: the checkpoint has no head to make logits with.
    """

    def __init__(self, path: Path, engine: EngineConfig) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a handle is no mapping
        self.items_sha256 = str(metadata["items_sha256"])
        self.answers: tuple[str, ...] = tuple(json.loads(metadata["answers"]))
        self.generated: tuple[tuple[int, ...], ...] = tuple(tuple(row) for row in tensors["generated"].tolist())
        # [num_windows, N] each
        self.top1: Tensor | None = tensors.get("top1")
        self.nll: Tensor | None = tensors.get("nll")
        self._hidden: Tensor | None = tensors.get("hidden")
        self._dtype: torch.dtype = getattr(torch, metadata["dtype"])
        self._engine = engine
        self._head: Tensor | None = None

    def logits(self, window: int, rows: slice) -> Tensor:
        """[M, V] float32 of some tokens of a window, on the device of the point's engine."""
        assert self._hidden is not None
        if self._head is None:
            self._head = _read_head(self._engine, self._dtype)
        hidden = self._hidden[window, rows].to(device=self._head.device, dtype=self._dtype)
        return F.linear(hidden, self._head).float()


def _read_head(engine: EngineConfig, dtype: torch.dtype) -> Tensor:
    """[V, C], the checkpoint's own."""
    model, spec = engine.model, read_spec(engine.model)
    assert model.path is not None
    source = Checkpoint(
        resolve_folder(model.path),
        tensor_shapes(spec),
        device=engine.execution.device,
        dtype=dtype,
        tied_head=spec.tie_word_embeddings,
    )
    return source.take("model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight")
