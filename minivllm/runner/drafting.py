"""The drafts of one step, chunk by chunk: asked of the drafter before the step's pass, judged after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minivllm.plan import Chunk, StepPlan
from minivllm.runner.rows import Rows
from minivllm.speculation.base import Drafter, DraftRequest, HostDrafter
from minivllm.speculation.model import DraftHost, Drafts, ModelDrafter, Resume
from minivllm.speculation.tree import DraftTree, accept


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepDrafts:
    """What was proposed in a step of R chunks.

    Args:
        counts: [R] int64, drafts behind each chunk.
        requests: those that were asked, whether drafts were found or not, in the order of their chunks.
        places: of each of them, its chunk.
        token_ids: [R] of lists, the drafts behind each chunk; None while they are on the device alone.
        proposal: of a drafter that computes, one row a request.
    """

    counts: np.ndarray
    requests: Sequence[DraftRequest]
    places: Sequence[int]
    token_ids: Sequence[Sequence[int]] | None = None
    proposal: Drafts | None = None

    @property
    def tree(self) -> DraftTree | None:
        """The drafts' shape; None is a chain."""
        return None if self.proposal is None else self.proposal.tree

    @property
    def resume(self) -> Resume | None:
        return None if self.proposal is None else self.proposal.resume

    def of_chunk(self, index: int) -> Sequence[int]:
        """The drafts behind a chunk."""
        assert self.token_ids is not None
        return self.token_ids[index]

    def depth_of_chunk(self, index: int) -> int:
        """Drafts on the longest path behind a chunk."""
        count = int(self.counts[index])
        return count if self.tree is None or count == 0 else max(self.tree.depths[:count])


def tell(drafter: Drafter, plan: StepPlan, rows: Rows) -> None:
    """Tell a drafter what a plan changes; the rows know already, and so does the K/V cache."""
    for request_id in plan.released:
        drafter.end(request_id)
    for new in plan.new_rows:
        drafter.start(new.request_id, new.token_ids)
    if isinstance(drafter, ModelDrafter):
        drafter.update(plan, rows)


def propose(drafter: Drafter, host: DraftHost, chunks: Sequence[Chunk], rows: np.ndarray) -> StepDrafts | None:
    """Ask for the drafts of a step.

    Args:
        drafter: asked once, for all chunks that may have drafts.
        host: the runner.
        chunks, rows: R of each, of the step.

    Returns:
        None where no chunk may have drafts, or none were found.

    Raises:
        ValueError: a drafter outside of this house breaks the rules.
    """
    places = [i for i, chunk in enumerate(chunks) if chunk.num_draft_tokens]
    if not places:
        return None
    requests = [
        DraftRequest(
            request_id=chunks[i].request_id,
            row=int(rows[i]),
            num_tokens=chunks[i].start + chunks[i].num_tokens,
            num_draft_tokens=chunks[i].num_draft_tokens,
        )
        for i in places
    ]
    counts = np.zeros(len(chunks), dtype=np.int64)
    proposal = None
    if isinstance(drafter, HostDrafter):
        found = drafter.propose(requests)
        counts[places] = [len(tokens) for tokens in found]
    else:
        assert isinstance(drafter, ModelDrafter)
        proposal = drafter.propose(requests, host)
        counts[places] = proposal.counts
        found = [row[:count] for row, count in zip(proposal.token_ids.tolist(), proposal.counts, strict=True)]
    token_ids: list[Sequence[int]] = [()] * len(chunks)
    for place, request, tokens in zip(places, requests, found, strict=True):
        token_ids[place] = tokens
        vocab_size = drafter.target.model.spec.vocab_size
        if len(tokens) > request.num_draft_tokens or not all(0 <= token < vocab_size for token in tokens):
            raise ValueError(
                f"speculation={type(drafter).__name__}: proposes {list(tokens)} to request {request.request_id}: must "
                f"be at most {request.num_draft_tokens} tokens in [0, {vocab_size})"
            )
    if not counts.any():
        return None
    return StepDrafts(counts=counts, requests=requests, places=places, token_ids=token_ids, proposal=proposal)


def accepted_nodes(tree: DraftTree | None, drafts: Sequence[int], own: Sequence[int]) -> list[int]:
    """Which drafts are right, when the target's own tokens decide.

    Args:
        tree: of the drafts; None is a chain.
        drafts: of one request, each a node.
        own: what the target says after the newest token, then after each draft: one more.

    Returns:
        The accepted nodes, from the root down.
    """
    if tree is not None:
        return accept(tree, drafts, own)
    for node, (draft, token) in enumerate(zip(drafts, own, strict=False)):
        if draft != token:
            return list(range(node))
    return list(range(len(drafts)))
