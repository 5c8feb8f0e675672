"""How a model that drafts draws its drafts: under each request's own temperature and filters, from the DRAFT stream.

Verification (`verify`) makes up for whatever the drafter believes, so all that matters is that it is told the weights
that a draft was drawn from. Penalties are left to it: a draft that they would have changed is rejected more often.

Shape suffixes: R requests that draft, Q of them that draw, K drafts of each, V vocabulary, S rows of a sampling group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minivllm.sampling.batch import MAX_GROUP_ROWS, RowGroup, SamplingBatch, SamplingRow, make_draws, to_tensor
from minivllm.sampling.random import Stream, uniforms
from minivllm.sampling.sampler import RowMax, draw_tokens, sample, torch_row_max


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DraftOutput:
    """One draft of each request.

    Args:
        token_ids: [R] int64, always below the vocabulary.
        weights: [Q, V] float64, unnormalized: what the requests `DraftBatch.drawn` drew from. None where none did.
    """

    token_ids: Tensor
    weights: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DraftBatch:
    """All draws of a step's drafts, made before the first of them, so that nothing is uploaded between two drafts.

    Args:
        drawn: [Q] int64 ascending, the requests that draw; the others take what is likeliest, a point.
        steps: K batches, one for each draft in a row.
    """

    drawn: np.ndarray
    steps: tuple[SamplingBatch, ...]

    @classmethod
    def greedy(cls, num_rows: int, num_drafts: int) -> DraftBatch:
        """Every request drafts what is likeliest."""
        steps = (SamplingBatch.greedy(num_rows),) * num_drafts
        return cls(drawn=np.empty(0, dtype=np.int64), steps=steps)

    @classmethod
    def make(
        cls, rows: Sequence[SamplingRow], num_drafts: int, device: torch.device | str, *, points: bool = False
    ) -> DraftBatch:
        """Look at the requests.

        Args:
            rows: the requests that draft; `position` is that of the first draft, tokens so far are not looked at.
            num_drafts: K.
            device: where the logits will be.
            points: every request drafts what is likeliest, as greedy ones do.
        """
        drawn = [] if points else [index for index, row in enumerate(rows) if not row.params.greedy]
        if not drawn:
            return cls.greedy(len(rows), num_drafts)
        chosen = [rows[index] for index in drawn]
        first_Q = np.array([row.position for row in chosen], dtype=np.int64)
        position_KQ = np.arange(num_drafts)[:, None] + first_Q
        seeds = [row.seed for row in chosen] * num_drafts
        flat = uniforms(seeds, position_KQ.reshape(-1), Stream.DRAFT)
        uniforms_KQ = to_tensor(flat, np.float64, device).view(num_drafts, len(drawn))
        groups = [
            _make_groups(chosen[start : start + MAX_GROUP_ROWS], drawn[start : start + MAX_GROUP_ROWS], part_KS)
            for start, part_KS in zip(
                range(0, len(drawn), MAX_GROUP_ROWS), uniforms_KQ.split(MAX_GROUP_ROWS, dim=1), strict=True
            )
        ]
        steps = tuple(
            SamplingBatch(
                num_rows=len(rows),
                any_plain=len(drawn) < len(rows),
                groups=of_step,
                logprob_rows=(),
                num_logprobs=(),
            )
            for of_step in zip(*groups, strict=True)
        )
        return cls(drawn=np.array(drawn, dtype=np.int64), steps=steps)

    def draw(self, logits_RV: Tensor, step: int, row_max: RowMax = torch_row_max) -> DraftOutput:
        """Draft `step` of each request. Nothing waits for the device but filters that do so in `sample`.

        Args:
            logits_RV: [R, V] float32 of the drafter, not changed.
            step: in [0, K).
            row_max: see `sample`.
        """
        weights: list[Tensor] = []

        def draw(weights_SV: Tensor, group: RowGroup) -> Tensor:
            weights.append(weights_SV)
            return draw_tokens(weights_SV, group)

        output = sample(logits_RV, self.steps[step], row_max, draw)
        if not weights:
            return DraftOutput(token_ids=output.token_ids, weights=None)
        return DraftOutput(token_ids=output.token_ids, weights=weights[0] if len(weights) == 1 else torch.cat(weights))


def _make_groups(rows: Sequence[SamplingRow], members: list[int], uniforms_KS: Tensor) -> list[RowGroup]:
    """The same S rows K times, each time with other uniforms."""
    device = uniforms_KS.device
    draws = make_draws([row.params for row in rows], uniforms_KS[0], device)
    group = RowGroup(rows=to_tensor(members, np.int64, device), members=members, penalties=None, draws=draws)
    return [replace(group, draws=replace(draws, uniforms=uniforms_S)) for uniforms_S in uniforms_KS]
