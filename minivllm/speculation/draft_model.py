"""A smaller model drafts: any that has the target's vocabulary. Its K/V lies in the engine's blocks.

Source: Leviathan et al. (arXiv 2211.17192); Chen et al. (arXiv 2302.01318).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import AttentionBackend
from minivllm.config import ModelConfig
from minivllm.models import load_model
from minivllm.models.folder import read_json, read_spec, resolve_folder
from minivllm.models.llama import Llama
from minivllm.plan import StepPlan
from minivllm.quantization.none import Unquantized
from minivllm.runner.forward import attend_of
from minivllm.runner.rows import Rows
from minivllm.speculation.base import DraftRequest
from minivllm.speculation.chain import ChainDrafter
from minivllm.speculation.heads import linear_target
from minivllm.speculation.model import DraftHost, Drafts
from minivllm.speculation.paged import DraftCache, pack, pack_drafts
from minivllm.speculation.target import DraftTarget


class DraftModel(ChainDrafter):
    """Drafts with a model of its own.

    Args:
        target: see `Drafter`.
        path: a Hugging Face folder, or a hub id.

    Raises:
        ValueError: another vocabulary than the target's, or a context shorter than the engine's.
    """

    def __init__(self, *, target: DraftTarget, path: str) -> None:
        super().__init__(target=target)
        config = ModelConfig(path=path)
        _check(config, target)
        self._model = load_model(
            config,
            device=target.config.execution.device,
            dtype=str(target.dtype).removeprefix("torch."),
            scheme=Unquantized(target=linear_target(target)),
            skip=(),
            ops=target.ops,
        )
        self._cache = DraftCache(self._model.spec, target)
        self.weights_bytes = self._model.weights_bytes
        self.bytes_per_block = self._cache.bytes_per_block
        self._most_tokens = target.config.scheduler.max_num_batched_tokens
        # Set by a runner that can: the likeliest drafts, [R, K], of requests that have so many tokens read already, in
        # one launch; none of them may have more than `most_unread` others.
        self.draft_at_once: Callable[[Sequence[DraftRequest], np.ndarray], Tensor] | None = None
        self.most_unread = 0

    @property
    def model(self) -> Llama:
        return self._model

    @property
    def attention(self) -> AttentionBackend:
        """Over its own K/V, which it has from `allocate` on."""
        return self._cache.attention

    def propose(self, requests: Sequence[DraftRequest], host: DraftHost) -> Drafts:
        num_read = np.array([self._cache.num_read(request.request_id) for request in requests])
        num_unread = np.array([request.num_tokens for request in requests]) - num_read
        at_once = self.draft_at_once
        if at_once is None or (num_unread > self.most_unread).any() or len(host.draft_batch(requests, 1).drawn):
            return super().propose(requests, host)
        token_ids = at_once(requests, num_read)
        self._read(requests, host)
        counts = np.array([request.num_draft_tokens for request in requests], dtype=np.int64)
        return Drafts(counts=counts, token_ids=token_ids)

    def allocate(self, num_blocks: int) -> None:
        self._cache.allocate(num_blocks)

    def update(self, plan: StepPlan, rows: Rows) -> None:
        self._cache.update(plan)

    def block_tensors(self) -> Sequence[Tensor]:
        return self._cache.block_tensors()

    def extend(self, request_id: int, num_tokens: int, token_ids: Sequence[int]) -> None:
        self._cache.accepted(request_id, num_tokens - 1)

    def end(self, request_id: int) -> None:
        self._cache.end(request_id)

    def begin(self, requests: Sequence[DraftRequest], host: DraftHost) -> Tensor:
        hidden = torch.empty(0)
        for parts in self._cache.unread(requests, self._most_tokens):
            batch = pack(parts, host)
            hidden = self._model.forward(batch.token_ids, batch.positions, attend_of(self._cache.attention, batch))
            hidden = hidden.index_select(0, batch.sample_indices)
        self._read(requests, host)
        return hidden

    def _read(self, requests: Sequence[DraftRequest], host: DraftHost) -> None:
        self._cache.read(requests, host.rows)
        for request in requests:
            # The last draft is not read.
            self._cache.drafted(request.request_id, request.num_tokens + request.num_draft_tokens - 1)

    def advance(
        self, token_ids: Tensor, hidden: Tensor, requests: Sequence[DraftRequest], offset: int, host: DraftHost
    ) -> Tensor:
        batch = pack_drafts(token_ids, requests, offset, host)
        return self._model.forward(batch.token_ids, batch.positions, attend_of(self._cache.attention, batch))

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self._model.compute_logits(hidden).float()


def _check(config: ModelConfig, target: DraftTarget) -> None:
    """Raise the one-line ValueError of a model that cannot draft for the target."""
    spec, wanted = read_spec(config), target.model.spec.vocab_size
    if spec.vocab_size != wanted:
        raise ValueError(
            f"speculation.path={config.path!r}: has a vocabulary of {spec.vocab_size}, the target has {wanted}: "
            "choose a model with the target's tokenizer"
        )
    ours, theirs = _vocabulary(config.path), _vocabulary(target.config.model.path)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"speculation.path={config.path!r}: its tokenizer has other tokens than the target's: choose a model with "
            "the target's tokenizer"
        )
    longest = spec.limit_length(None)
    if longest < target.max_model_len:
        raise ValueError(
            f"speculation.path={config.path!r}: has a context of {longest}, and model.max_model_len is "
            f"{target.max_model_len}: lower it, or choose another draft model"
        )


def _vocabulary(path: str | None) -> object:
    """The tokens of a model's folder; None where it has no tokenizer in one file."""
    if path is None:
        return None
    file = resolve_folder(path) / "tokenizer.json"
    if not file.is_file():
        return None
    return read_json(file).get("model", {}).get("vocab")
