"""Drafts that stay on the device: asked of the drafter, stored behind the newest tokens in the rows, verified there.
The host learns them together with what came of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import AttentionBackend
from minivllm.plan import Chunk, StepPlan
from minivllm.runner.device_rows import DeviceRows
from minivllm.runner.drafting import StepDrafts, draft_batch, propose, sampling_rows, tell
from minivllm.runner.parts import Parts
from minivllm.runner.rows import Rows
from minivllm.sampling.drafts import DraftBatch
from minivllm.sampling.sampler import RowMax, SamplingBatch, sample
from minivllm.sampling.verify import sample_chains
from minivllm.speculation.base import Drafter, DraftRequest
from minivllm.transfer import upload


class DeviceDrafts:
    """A drafter on one device, and what it needs of its runner: a `DraftHost`.

    Args:
        drafter: whose drafts.
        parts: of the engine.
        rows, device_rows: the requests, as the host and as the device know them.
        sample_drafts: see `SpeculationConfig`.
    """

    def __init__(
        self, drafter: Drafter, parts: Parts, rows: Rows, device_rows: DeviceRows, sample_drafts: bool
    ) -> None:
        self.drafter = drafter
        self._parts = parts
        self._rows = rows
        self._device_rows = device_rows
        self._sample_drafts = sample_drafts

    # What a drafter needs of its runner

    @property
    def rows(self) -> Rows:
        return self._rows

    @property
    def features(self) -> Tensor | None:
        return self._parts.features

    def token_ids(self, rows: np.ndarray, places: np.ndarray) -> Tensor:
        device = self._parts.device
        return self._device_rows.gather(upload(rows.astype(np.int32), device), upload(places, device))[0]

    def draft_batch(self, requests: Sequence[DraftRequest], num_drafts: int) -> DraftBatch:
        return draft_batch(requests, num_drafts, self._rows, self._parts.device, sample=self._sample_drafts)

    @property
    def row_max(self) -> RowMax:
        return self._parts.ops.row_max

    @property
    def attention(self) -> AttentionBackend:
        return self._parts.attention

    # What the runner needs

    def tell(self, plan: StepPlan) -> None:
        """The rows were brought up to this plan."""
        tell(self.drafter, plan, self._rows)

    def propose(self, chunks: Sequence[Chunk], rows: np.ndarray) -> StepDrafts | None:
        """Drafts behind these R chunks and rows, stored in the rows. Nothing waits for the device."""
        drafts = propose(self.drafter, self, chunks, rows, wait=False)
        if drafts is not None:
            self._store(drafts)
        return drafts

    def _store(self, drafts: StepDrafts) -> None:
        counts = drafts.counts[list(drafts.places)]
        rows = np.array([request.row for request in drafts.requests], dtype=np.int32)
        firsts = np.array([request.num_tokens for request in drafts.requests], dtype=np.int32)
        # [R, K] each; row -1 stores nothing
        width = int(counts.max()) if drafts.proposal is None else drafts.proposal.token_ids.shape[1]
        columns = np.arange(width, dtype=np.int32)[None, :]
        places = np.stack([np.where(columns < counts[:, None], rows[:, None], -1), firsts[:, None] + columns])
        if drafts.proposal is None:
            found = np.zeros((len(counts), width), dtype=np.int64)
            for i, place in enumerate(drafts.places):
                found[i, : counts[i]] = drafts.of_chunk(place)
            token_ids = upload(found.reshape(-1), self._parts.device)
        else:
            # What is no token is found out later; what embeds it stays in bounds.
            token_ids = drafts.proposal.token_ids.reshape(-1).clamp(max=self._parts.model.spec.vocab_size - 1)
        self._device_rows.store(places.reshape(2, -1), token_ids)

    def needs_rule(self, drafts: StepDrafts) -> bool:
        """Whether rows of these drafts are sampled by `sample`, and not by the sampler of all others: drafts were
        drawn, or what a penalty counts is the path of a tree, which does not lie in one piece."""
        if drafts.proposal is None:
            return False
        penalized = any(self._rows.params[request.row].penalized for request in drafts.requests)
        return drafts.proposal.weights is not None or (drafts.tree is not None and penalized)

    def sample(self, logits_MV: Tensor, chunks: Sequence[Chunk], rows: np.ndarray, drafts: StepDrafts) -> Tensor:
        """The token after the newest of each sampling chunk and after each of its drafts, where `needs_rule`.

        Args:
            logits_MV: of these M tokens, any float dtype.
            chunks, rows: R of each, all of the step.
            drafts: of the step.

        Returns:
            [M] int64; -1 where logits are no numbers.
        """
        sampling = [i for i, chunk in enumerate(chunks) if chunk.samples]
        # Of the tokens so far, their places in the store.
        width = self._device_rows.tokens.shape[1]
        made = [
            row
            for i in sampling
            for row in sampling_rows(chunks[i], int(rows[i]), self._rows, drafts, i, partial(np.add, rows[i] * width))
        ]
        batch = SamplingBatch.make(made, logits_MV.device)
        # Penalties were given places in the store; only the device knows what stands there.
        tokens = self._device_rows.tokens.view(-1)
        groups = []
        for group in batch.groups:
            if group.penalties is not None:
                token_ids = tokens.index_select(0, group.penalties.token_ids).long()
                group = replace(group, penalties=replace(group.penalties, token_ids=token_ids))
            groups.append(group)
        batch = replace(batch, groups=tuple(groups), logprob_rows=(), num_logprobs=())
        assert drafts.proposal is not None
        if drafts.proposal.weights is None:
            output = sample(logits_MV.float(), batch, self.row_max)
        else:
            output = sample_chains(logits_MV.float(), batch, drafts.chains(sampling), self.row_max)
        return torch.where(output.finite, output.token_ids, -1)

    def keep(self, accepted: Sequence[tuple[int, int, Sequence[int], Sequence[int]]]) -> None:
        """Bring what stands of trees together, where the next step looks for it.

        Args:
            accepted: (row, place of its first draft, accepted nodes, tokens: one more than nodes).
        """
        device = self._parts.device
        rows = np.concatenate([np.full(len(tokens), row) for row, _, _, tokens in accepted])
        places = np.concatenate([first + np.arange(len(tokens)) for _, first, _, tokens in accepted])
        tokens = np.concatenate([np.array(tokens, dtype=np.int64) for *_, tokens in accepted])
        self._device_rows.store(np.stack([rows, places]).astype(np.int32), upload(tokens, device))
        moved = [(row, first, nodes) for row, first, nodes, _ in accepted if list(nodes) != list(range(len(nodes)))]
        if moved:
            rows = np.concatenate([np.full(len(nodes), row) for row, _, nodes in moved])
            sources = np.concatenate([first + np.array(nodes) for _, first, nodes in moved])
            targets = np.concatenate([first + np.arange(len(nodes)) for _, first, nodes in moved])
            slots = np.stack([self._rows.slots(rows, sources), self._rows.slots(rows, targets)])
            self._parts.move_slots(*upload(slots, device))

    def scrub(self, row: int) -> None:
        """Make numbers of the K/V of a request that failed: its blocks go back to the pool, where a stray NaN would
        spoil whoever reads past its own keys."""
        self._parts.scrub(self._rows.block_table[row])
