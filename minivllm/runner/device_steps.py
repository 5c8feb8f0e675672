"""Steps in which everybody has one known token, with drafts behind it or without: which buffers serve them, padded to
which size, as a graph or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from minivllm.attention.triton_backend import TritonAttention
from minivllm.config import SpeculationConfig
from minivllm.models.llama import Llama
from minivllm.runner.decode import DecodeStep, batch_buckets
from minivllm.runner.device_chains import MOST_UNREAD, ChainSteps
from minivllm.runner.device_rows import DeviceRows, Need
from minivllm.runner.drafting import StepDrafts
from minivllm.runner.graphs import DecodeGraphs, Recorder, VerifyGraphs
from minivllm.runner.verify_step import VerifyStep, draft_counts, few_requests
from minivllm.speculation.base import Drafter
from minivllm.speculation.draft_model import DraftModel
from minivllm.transfer import upload

_FIXED = "minivllm.speculation.lengths.fixed.Fixed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """What a step left on the device: tokens and logits of its queries that are sampled from, in their order, and
    perhaps padding behind them; and the moment before it, after the inputs were on their way, so that a device which
    waits for the host is not taken for a busy one."""

    # [M] int64, -1 where logits are no numbers
    sampled: Tensor
    # [M, V]; None where nobody may look at them
    logits: Tensor | None
    begun: Any


class DeviceSteps:
    """Of one engine.

    Args:
        model, attention, rows: see `DecodeStep`.
        max_rows: requests in one step.
        features: see `DecodeStep`.
        speculation: None where no chain of drafts will be verified here.
        draws: whether drafts may be drawn, and not only be what is likeliest.
    """

    def __init__(
        self,
        model: Llama,
        attention: TritonAttention,
        rows: DeviceRows,
        max_rows: int,
        features: Tensor | None,
        speculation: SpeculationConfig | None,
        draws: bool = False,
    ) -> None:
        self._rows = rows
        self._device = rows.tokens.device
        self._few = few_requests(attention.shape.num_kv_heads)
        self._needs: list[Need | None] = [*reversed(Need)]
        num_queries, self.verify = max_rows, None
        if speculation is not None:
            most = speculation.num_draft_tokens
            self._counts = draft_counts(most, speculation.length.target != _FIXED)
            num_queries = max(max_rows, min(max_rows, self._few) * (1 + most))
            self._needs += [None] if draws else []
            self.verify = VerifyStep(model, attention, rows, max_rows, most, features)
        self.decode = DecodeStep(model, attention, rows, num_queries, features)
        self.sizes = batch_buckets(num_queries)
        # Every second of them: a verification is long enough to be padded by more.
        self.verify_sizes = batch_buckets(max_rows)[::-1][::2][::-1]
        self.decode_graphs: DecodeGraphs | None = None
        self.verify_graphs: VerifyGraphs | None = None

    def serves(self, drafts: StepDrafts | None) -> bool:
        """Whether these drafts can be verified here: a tree, or work to go on with, cannot."""
        return drafts is None or (self.verify is not None and drafts.tree is None and drafts.resume is None)

    def run(
        self, rows: np.ndarray, positions: np.ndarray, counts: np.ndarray | None, need: Need | None, mark: Callable
    ) -> Computed:
        """Compute a step of R requests.

        Args:
            rows, positions: [R], of each request's newest token.
            counts: [R], drafts behind it, in the rows already; None where nobody has any.
            need: of the neediest row; None samples nothing.
            mark: called when the inputs are on their way.
        """
        if counts is None:
            return self._beside(rows, positions, need, mark)
        num_queries, most = len(rows) + int(counts.sum()), int(counts.max())
        padded = next(count for count in self._counts if count >= most)
        # With few requests keys are better split than read once; and a few long chains are no reason to pad all others.
        beside = len(rows) <= self._few or len(rows) * (1 + padded) > 2 * num_queries
        if beside and num_queries <= self.sizes[-1]:
            ends = np.cumsum(counts + 1)
            places = np.arange(num_queries) + np.repeat(positions - ends + counts + 1, counts + 1)
            return self._beside(np.repeat(rows, counts + 1), places, need, mark)
        return self._padded(rows, positions, counts, padded, need, mark)

    def _beside(self, rows: np.ndarray, positions: np.ndarray, need: Need | None, mark: Callable) -> Computed:
        size = len(rows)
        if self.decode_graphs is not None:
            size = next(bucket for bucket in self.sizes if bucket >= size)
        self.decode.fill(rows, positions, size)
        begun = mark()
        compute = self.decode.compute if self.decode_graphs is None else self.decode_graphs.replay
        sampled, logits = compute(size, need)
        return Computed(sampled=sampled, logits=logits, begun=begun)

    def _padded(
        self,
        rows: np.ndarray,
        positions: np.ndarray,
        counts: np.ndarray,
        padded: int,
        need: Need | None,
        mark: Callable,
    ) -> Computed:
        assert self.verify is not None
        size = len(rows)
        if self.verify_graphs is not None:
            size = next(bucket for bucket in self.verify_sizes if bucket >= size)
        self.verify.fill(rows, positions, counts, size)
        begun = mark()
        compute = self.verify.compute if self.verify_graphs is None else self.verify_graphs.replay
        sampled, logits = compute(size, padded, need)
        if (counts < padded).any():
            own = np.flatnonzero(np.arange(1 + padded) <= counts[:, None])
            queries = upload(own, self._device)
            sampled = sampled.index_select(0, queries)
            logits = None if logits is None else logits.index_select(0, queries)
        return Computed(sampled=sampled, logits=logits, begun=begun)

    def chains_of(self, drafter: DraftModel) -> ChainSteps | None:
        """What drafts for all in one launch; None where its attention has no place in that."""
        if self.verify is None or not isinstance(drafter.attention, TritonAttention):
            return None
        return ChainSteps(drafter.model, drafter.attention, self._rows, self.verify_sizes, self._counts)

    def warm_up(self, *, graphs: bool, chains: bool, drafter: Drafter | None) -> None:
        """Capture all graphs, or compile what they would hold.

        Args:
            graphs: which of both.
            chains: whether drafts will be verified here.
            drafter: whose passes are captured, too, where it is a model of its own.
        """
        counts = self._counts if chains and self.verify is not None else ()
        if graphs:
            recorder = Recorder()
            if isinstance(drafter, DraftModel) and (steps := self.chains_of(drafter)) is not None:
                steps.capture(recorder)
                drafter.draft_at_once, drafter.most_unread = steps.run, MOST_UNREAD
            if self.verify is not None and counts:
                self.verify_graphs = VerifyGraphs(self.verify, self.verify_sizes, counts, self._needs, recorder)
            self.decode_graphs = DecodeGraphs(self.decode, self.sizes, self._needs, recorder)
            return
        for need in self._needs:
            for size in self.sizes:
                self.decode.compute(size, need)
            for count in counts:
                for size in self.verify_sizes:
                    assert self.verify is not None
                    self.verify.compute(size, count, need)
