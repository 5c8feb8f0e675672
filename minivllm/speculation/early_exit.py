"""Self-speculation: the target's first layers draft, through its own norm and head, and its other layers verify.

The drafts' K/V in the first layers is the target's own, written where verification would have written it, and their
residual streams are kept: verification begins behind the exit, and nothing is computed twice.

Source: LayerSkip (arXiv 2404.16710), sections 4.2 and 4.3. It needs a model whose exits were trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.config import require
from minivllm.runner.forward import attend_of
from minivllm.speculation.base import DraftRequest
from minivllm.speculation.chain import ChainDrafter
from minivllm.speculation.model import DraftHost, Resume
from minivllm.speculation.paged import pack_drafts
from minivllm.speculation.target import DraftTarget
from minivllm.transfer import upload


class EarlyExit(ChainDrafter):
    """Drafts with the first layers of the target.

    Args:
        target: see `Drafter`.
        exit_layer: how many layers; at least 1, and fewer than the model has.
        random_exit: shuffle what leaves the exit, so that it costs the same and knows nothing: an ablation.
    """

    def __init__(self, *, target: DraftTarget, exit_layer: int, random_exit: bool = False) -> None:
        super().__init__(target=target)
        num_layers = target.model.spec.num_layers
        valid = isinstance(exit_layer, int) and not isinstance(exit_layer, bool) and 1 <= exit_layer < num_layers
        require(valid, "speculation.exit_layer", exit_layer, f"in [1, {num_layers - 1}]: the model has {num_layers}")
        require(isinstance(random_exit, bool), "speculation.random_exit", random_exit, "true or false")
        self._num_layers = exit_layer
        self._shuffle: Tensor | None = None
        if random_exit:
            order = torch.randperm(target.model.spec.hidden_size, generator=torch.Generator().manual_seed(0))
            self._shuffle = order.to(target.device)
        # Of the step: [R, C] of each pass, and whose.
        self._passes: list[tuple[Sequence[DraftRequest], Tensor]] = []

    def begin(self, requests: Sequence[DraftRequest], host: DraftHost) -> Tensor:
        self._passes = []
        rows = np.array([request.row for request in requests], dtype=np.int64)
        newest = np.array([request.num_tokens - 1 for request in requests], dtype=np.int64)
        return self._run(host.token_ids(rows, newest), requests, 0, host)

    def advance(
        self, token_ids: Tensor, hidden: Tensor, requests: Sequence[DraftRequest], offset: int, host: DraftHost
    ) -> Tensor:
        return self._run(token_ids, requests, offset, host)

    def _run(self, token_ids: Tensor, requests: Sequence[DraftRequest], offset: int, host: DraftHost) -> Tensor:
        model = self.target.model
        batch = pack_drafts(token_ids, requests, offset, host)
        residual = model.embed(token_ids)
        model.run_layers(residual, batch.positions, attend_of(host.attention, batch), 0, self._num_layers)
        self._passes.append((requests, residual))
        hidden = model.norm(residual)
        return hidden if self._shuffle is None else hidden.index_select(1, self._shuffle)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.target.model.compute_logits(hidden).float()

    def finish(self) -> Resume:
        requests, first = self._passes[0]
        if all(len(residual) == len(first) for _, residual in self._passes):
            streams = torch.stack([residual for _, residual in self._passes], dim=1)
            return Resume(num_layers=self._num_layers, residual=streams)
        place = {request.request_id: i for i, request in enumerate(requests)}
        streams = first.new_zeros(len(first), len(self._passes), first.shape[1])
        for step, (active, residual) in enumerate(self._passes):
            at = upload(np.array([place[request.request_id] for request in active]), first.device)
            streams[:, step].index_copy_(0, at, residual)
        return Resume(num_layers=self._num_layers, residual=streams)
