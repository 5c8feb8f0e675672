"""Drafting one token after the other: the loop that all autoregressive drafters share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.speculation.base import DraftRequest
from minivllm.speculation.model import DraftHost, Drafts, ModelDrafter, Resume
from minivllm.transfer import upload


class ChainDrafter(ModelDrafter):
    """A drafter that computes a hidden state for each token and draws the next one from it."""

    @abstractmethod
    def begin(self, requests: Sequence[DraftRequest], host: DraftHost) -> Tensor:
        """[R, C], the hidden state of each request's newest token."""

    @abstractmethod
    def advance(
        self, token_ids: Tensor, hidden: Tensor, requests: Sequence[DraftRequest], offset: int, host: DraftHost
    ) -> Tensor:
        """The hidden state of drafts.

        Args:
            token_ids: [R] int64 on the device.
            hidden: [R, C], of the tokens before them.
            requests: theirs; each has at least one draft to come after this one.
            offset: of these drafts from the newest token, 1 for the first.
            host: the runner.

        Returns:
            [R, C].
        """

    @abstractmethod
    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[R, C] -> [R, V] float32."""

    def finish(self) -> Resume | None:
        """What the target need not compute again; called when all drafts are drawn."""
        return None

    def propose(self, requests: Sequence[DraftRequest], host: DraftHost) -> Drafts:
        counts = np.array([request.num_draft_tokens for request in requests], dtype=np.int64)
        most = int(counts.max())
        batch = host.draft_batch(requests, most)
        hidden = self.begin(requests, host)
        active = list(requests)
        columns, weights = [], []
        for step in range(most):
            output = batch.draw(self.compute_logits(hidden), step, host.row_max)
            columns.append(output.token_ids)
            if output.weights is not None:
                weights.append(output.weights)
            if step + 1 == most:
                break
            going = np.flatnonzero(counts > step + 1)
            if len(going) == len(requests):
                hidden = self.advance(output.token_ids, hidden, active, step + 1, host)
                continue
            active = [requests[i] for i in going.tolist()]
            at = upload(going, hidden.device)
            # The rows of requests that have their drafts stay, and nobody looks at what is drawn for them.
            tokens, before = output.token_ids.index_select(0, at), hidden.index_select(0, at)
            hidden = hidden.index_copy(0, at, self.advance(tokens, before, active, step + 1, host))
        return Drafts(
            counts=counts,
            token_ids=torch.stack(columns, dim=1),
            weights=torch.stack(weights, dim=1) if weights else None,
            drawn=batch.drawn if weights else None,
            resume=self.finish(),
        )
