"""Drafters that compute: the seam between them and the runner whose step they are part of.

All that such a drafter remembers of a token lies in that token's K/V slot: tensors of its own over the engine's blocks.
So sharing, copy-on-write, preemption and rollback are those of the block tables, and there is nothing to undo when
drafts are rejected: the slots are written again.

Shape suffixes: N packed tokens, R requests, K drafts of the longest chain, C hidden size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from minivllm.attention.base import AttentionBackend
from minivllm.plan import StepPlan
from minivllm.runner.rows import Rows
from minivllm.sampling.drafts import DraftBatch
from minivllm.sampling.sampler import RowMax
from minivllm.speculation.base import Drafter, DraftRequest
from minivllm.speculation.tree import DraftTree


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Resume:
    """Work on the step's tokens that drafting has done already: the target's first layers.

    Args:
        num_layers: done, from the first.
        residual: [R, K, C], the residual stream after them, of the newest token and of all drafts but the last.
    """

    num_layers: int
    residual: Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drafts:
    """What was proposed to R requests.

    Args:
        counts: [R] int64, drafts of each request.
        token_ids: [R, K] int64 on the device; what lies behind a request's count means nothing.
        weights: [Q, K, V] float64, what the drafts of the requests that draw were drawn from, up to a factor; None
            where all drafts are simply the likeliest.
        drawn: [Q] int64, those requests.
        tree: the shape of the drafts; None is a chain. A request with fewer drafts than nodes has the first ones.
        resume: of early exit.
    """

    counts: np.ndarray
    token_ids: Tensor
    weights: Tensor | None = None
    drawn: np.ndarray | None = None
    tree: DraftTree | None = None
    resume: Resume | None = None


class DraftHost(Protocol):
    """What a runner does for its drafter."""

    @property
    def rows(self) -> Rows:
        """Block tables and sampling parameters of the running requests."""
        ...

    @property
    def features(self) -> Tensor | None:
        """[num_slots, C]: the target's final hidden state of each computed token, where the drafter wants them."""
        ...

    def token_ids(self, rows: np.ndarray, places: np.ndarray) -> Tensor:
        """[N] int64 on the device, the tokens at these places of these rows; both are [N] int64."""
        ...

    def draft_batch(self, requests: Sequence[DraftRequest], num_drafts: int) -> DraftBatch:
        """How these requests draw their drafts."""
        ...

    @property
    def row_max(self) -> RowMax:
        """The kernel that takes the likeliest."""
        ...

    @property
    def attention(self) -> AttentionBackend:
        """Of the target, over its K/V."""
        ...


class ModelDrafter(Drafter, ABC):
    """A drafter that computes on the device.

    Attributes:
        wants_features: whether the runner keeps the target's final hidden states.
        weights_bytes: of its own weights.
        bytes_per_block: of what it keeps in a K/V block.
    """

    wants_features: bool = False
    weights_bytes: int = 0
    bytes_per_block: int = 0

    def allocate(self, num_blocks: int) -> None:
        """Take the memory for its own K/V; called once, when the size of the pool is known."""

    def update(self, plan: StepPlan, rows: Rows) -> None:
        """The rows and block tables were brought up to this plan."""

    def block_tensors(self) -> Sequence[Tensor]:
        """All that it keeps of blocks, [num_blocks, ...] each, as views: whoever copies a block copies their rows."""
        return ()

    @abstractmethod
    def propose(self, requests: Sequence[DraftRequest], host: DraftHost) -> Drafts:
        """Drafts for each request, in their order: at most its `num_draft_tokens`. Called in inference mode."""
