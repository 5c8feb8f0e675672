"""Weights that were trained to draft for one target: their files, and the target's own head that they end in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minivllm.config import is_count, require
from minivllm.models.folder import read_json, resolve_folder
from minivllm.models.llama import Llama
from minivllm.quantization.base import LinearOp, LinearTarget
from minivllm.quantization.none import Unquantized
from minivllm.speculation.target import DraftTarget


class Heads:
    """A folder of drafting weights, a `WeightSource` for a decoder in it.

    Args:
        path: the folder, or a hub id: config.json and model.safetensors.
        architecture: what config.json must name.
        target: what they must have been trained for.

    Raises:
        ValueError: no such folder, weights of another kind, or for another target.
    """

    def __init__(self, path: str, architecture: str, target: DraftTarget) -> None:
        self._path = path
        self._target = target
        self.folder = resolve_folder(path)
        self.config: Mapping[str, Any] = read_json(self.folder / "config.json")
        found = self.config.get("architectures")
        if found != [architecture]:
            raise ValueError(f"speculation.path={path!r}: holds {found}, must hold [{architecture!r}]")
        spec = target.model.spec
        for key, wanted in (("hidden_size", spec.hidden_size), ("vocab_size", spec.vocab_size)):
            if self.config.get(key) != wanted:
                raise ValueError(
                    f"speculation.path={path!r}: was trained for another model: its {key} is {self.config.get(key)}, "
                    f"the target's is {wanted}: choose heads of this target"
                )
        wanted_hash = self.config.get("target_sha256")
        if wanted_hash is not None and _target_hash(target) not in (None, wanted_hash):
            raise ValueError(
                f"speculation.path={path!r}: was trained for another model: target_sha256 in its config.json is not "
                f"that of the weights in {target.config.model.path!r}: choose heads of this target"
            )
        try:
            self._tensors = load_file(self.folder / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"speculation.path={path!r}: model.safetensors cannot be read: {error}") from error
        self.weights_bytes = 0
        self._used = {"token_order"}

    def take(self, name: str) -> Tensor:
        """The tensor of this name, `model.` before it or not, on the target's device and in its dtype."""
        name = name.removeprefix("model.")
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ValueError(f"speculation.path={self._path!r}: tensor {name} is missing")
        self._used.add(name)
        return tensor.to(device=self._target.device, dtype=self._target.dtype)

    def take_weight(self, name: str) -> Tensor:
        return self.take(name)

    def linear(self, weight_name: str, bias_name: str | None = None) -> LinearOp:
        """A projection of theirs, as the target's kernels multiply."""
        scheme = Unquantized(target=linear_target(self._target))
        bias = None if bias_name is None else self.take(bias_name)
        linear = scheme.make_linear(weight_name, self.take(weight_name), bias)
        self.weights_bytes += linear.weight_bytes
        return linear

    def check_used(self, optional: Sequence[str] = ()) -> None:
        """Raise the ValueError of a tensor that nobody took, and whose name begins with none of `optional`."""
        left = [name for name in self._tensors if name not in self._used and not name.startswith(tuple(optional))]
        if left:
            raise ValueError(f"speculation.path={self._path!r}: tensor {left[0]} has no place in these heads")

    def count(self, key: str) -> int:
        """A number in config.json, 1 or more."""
        value = self.config.get(key)
        if not isinstance(value, int) or not is_count(value):
            raise ValueError(f"speculation.path={self._path!r}: {key}={value!r} in its config.json: must be 1 or more")
        return value

    @property
    def token_order(self) -> Tensor:
        """[V] int64 on the CPU, all tokens, the most frequent first."""
        if "token_order" not in self._tensors:
            raise ValueError(
                f"speculation.draft_vocab_size: {self._path!r} has no token_order, so nobody knows the frequent "
                "tokens: choose null"
            )
        return self._tensors["token_order"].long()


def linear_target(target: DraftTarget) -> LinearTarget:
    """What products of a drafter are computed with: the same as the target's."""
    execution = target.config.execution
    return LinearTarget(
        kernels=target.kernels,
        device=execution.device,
        dtype=target.dtype,
        batch_invariant=execution.batch_invariant,
    )


def draft_head(heads: Heads, target: DraftTarget, draft_vocab_size: int | None) -> Callable[[Tensor], Tensor]:
    """The target's head, [M, C] -> [M, V] float32, or the part of it that drafts choose from.

    Args:
        heads: know which tokens are frequent.
        target: whose head it is.
        draft_vocab_size: only so many most frequent tokens are drafted, the others get -inf: a smaller product
            (EAGLE-3, arXiv 2503.01840, section 3; FR-Spec, arXiv 2502.14856). None is all.

    Raises:
        ValueError: more tokens than there are, or a head that keeps no rows.
    """
    model: Llama = target.model
    if draft_vocab_size is None:
        return lambda hidden: model.compute_logits(hidden).float()
    vocab_size = model.spec.vocab_size
    valid = is_count(draft_vocab_size) and draft_vocab_size <= vocab_size
    require(valid, "speculation.draft_vocab_size", draft_vocab_size, f"null or in [1, {vocab_size}]")
    if model.lm_head.look_up is None:
        raise ValueError(
            f"speculation.draft_vocab_size={draft_vocab_size}: the target's head is quantized, so no part of it can be "
            "taken: choose null, or keep lm_head in quantization.skip"
        )
    frequent = heads.token_order[:draft_vocab_size].sort().values.to(target.device)
    weight = model.lm_head.look_up(frequent)
    part = Unquantized(target=linear_target(target)).make_linear("lm_head", weight, None)
    heads.weights_bytes += part.weight_bytes

    def compute(hidden: Tensor) -> Tensor:
        logits = torch.full((len(hidden), vocab_size), -torch.inf, device=hidden.device)
        return logits.index_copy_(1, frequent, part(hidden).float())

    return compute


def _target_hash(target: DraftTarget) -> str | None:
    """SHA-256 of the target's weights, None where they are not one file."""
    path = target.config.model.path
    if path is None or target.config.model.weights != "checkpoint":
        return None
    file = Path(resolve_folder(path)) / "model.safetensors"
    if not file.is_file():
        return None
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
