"""The drafts of one step, chunk by chunk: asked of the drafter before the step's pass, judged after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import torch

from minivllm.plan import Chunk, StepPlan
from minivllm.runner.rows import Rows
from minivllm.sampling.batch import SamplingRow
from minivllm.sampling.drafts import DraftBatch
from minivllm.sampling.verify import Chains
from minivllm.speculation.base import Drafter, DraftRequest, HostDrafter
from minivllm.speculation.model import DraftHost, Drafts, ModelDrafter, Resume
from minivllm.speculation.tree import DraftTree, accept
from minivllm.transfer import upload


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepDrafts:
    """What was proposed in a step of R chunks.

    Args:
        counts: [R] int64, drafts behind each chunk.
        requests: those that were asked, whether drafts were found or not, in the order of their chunks.
        places: of each of them, its chunk.
        token_ids: [R] of lists, the drafts behind each chunk; None while they are on the device alone.
        proposal: of a drafter that computes, one row a request.
        verdicts: [R], how many drafts behind each chunk are accepted, where that is made up.
    """

    counts: np.ndarray
    requests: Sequence[DraftRequest]
    places: Sequence[int]
    token_ids: Sequence[Sequence[int]] | None = None
    proposal: Drafts | None = None
    verdicts: Sequence[int] | None = None

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

    def accepted(self, index: int, own: Sequence[int]) -> list[int]:
        """Which drafts behind a chunk stand, from the root of their tree down.

        Args:
            index: of the chunk.
            own: the token that the request goes on with after its newest, and after each draft: one more than drafts.
        """
        drafts = self.of_chunk(index)
        if self.verdicts is not None and drafts:
            return list(range(self.verdicts[index]))
        if self.tree is not None:
            return accept(self.tree, drafts, own)
        right = takewhile(lambda pair: pair[0] == pair[1], zip(drafts, own, strict=False))
        return list(range(sum(1 for _ in right)))

    def chains(self, sampling: Sequence[int]) -> Chains:
        """The drafts of the chunks that sample, for the rule of drawn drafts; they stay where they are."""
        assert self.proposal is not None and self.proposal.drawn is not None
        place_of = {chunk: i for i, chunk in enumerate(sampling)}
        # Those of a chunk that did not draft are not looked at.
        rows = np.zeros(len(sampling), dtype=np.int64)
        rows[[place_of[chunk] for chunk in self.places]] = np.arange(len(self.places))
        drafts = self.proposal.token_ids
        return Chains(
            num_drafts=self.counts[list(sampling)],
            token_ids=drafts.index_select(0, upload(rows, drafts.device)),
            drawn=np.array([place_of[self.places[request]] for request in self.proposal.drawn.tolist()]),
            weights=self.proposal.weights,
        )

    def told(self, drafter: Drafter, token_ids: Sequence[Sequence[int]]) -> StepDrafts:
        """With the drafts of the requests that were asked, which were on the device alone.

        Args:
            token_ids: what lies behind a request's count is left away.
        """
        counts = self.counts[list(self.places)].tolist()
        found = [tokens[:count] for tokens, count in zip(token_ids, counts, strict=True)]
        _check(drafter, self.requests, found)
        return replace(self, token_ids=_by_chunk(len(self.counts), self.places, found))


def tell(drafter: Drafter, plan: StepPlan, rows: Rows) -> None:
    """Tell a drafter what a plan changes; the rows know already, and so does the K/V cache."""
    for request_id in plan.released:
        drafter.end(request_id)
    for new in plan.new_rows:
        drafter.start(new.request_id, new.token_ids)
    if isinstance(drafter, ModelDrafter):
        drafter.update(plan, rows)


def propose(
    drafter: Drafter, host: DraftHost, chunks: Sequence[Chunk], rows: np.ndarray, *, wait: bool = True
) -> StepDrafts | None:
    """Ask for the drafts of a step.

    Args:
        drafter: asked once, for all chunks that may have drafts.
        host: the runner.
        chunks, rows: R of each, of the step.
        wait: for the drafts of a drafter that computes; else they stay on the device until they are `told`.

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
    if isinstance(drafter, HostDrafter):
        found = drafter.propose(requests)
        _check(drafter, requests, found)
        counts[places] = [len(tokens) for tokens in found]
        drafts = StepDrafts(
            counts=counts,
            requests=requests,
            places=places,
            token_ids=_by_chunk(len(chunks), places, found),
            verdicts=_verdicts(drafter, requests, places, counts),
        )
    else:
        assert isinstance(drafter, ModelDrafter)
        proposal = drafter.propose(requests, host)
        counts[places] = proposal.counts
        drafts = StepDrafts(counts=counts, requests=requests, places=places, proposal=proposal)
        # Too many would be written over what is not theirs.
        if wait or any(counts[i] > chunks[i].num_draft_tokens for i in places):
            drafts = drafts.told(drafter, proposal.token_ids.tolist())
    return drafts if counts.any() else None


def _check(drafter: Drafter, requests: Sequence[DraftRequest], found: Sequence[Sequence[int]]) -> None:
    vocab_size = drafter.target.model.spec.vocab_size
    for request, tokens in zip(requests, found, strict=True):
        if len(tokens) > request.num_draft_tokens or not all(0 <= token < vocab_size for token in tokens):
            raise ValueError(
                f"speculation={type(drafter).__name__}: proposes {list(tokens)} to request {request.request_id}: must "
                f"be at most {request.num_draft_tokens} tokens in [0, {vocab_size})"
            )


def _by_chunk(num_chunks: int, places: Sequence[int], found: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    token_ids: list[Sequence[int]] = [()] * num_chunks
    for place, tokens in zip(places, found, strict=True):
        token_ids[place] = tokens
    return token_ids


def _verdicts(
    drafter: Drafter, requests: Sequence[DraftRequest], places: Sequence[int], counts: np.ndarray
) -> Sequence[int] | None:
    if not isinstance(drafter, HostDrafter):
        return None
    made_up = [drafter.num_accepted(r, int(counts[place])) for r, place in zip(requests, places, strict=True)]
    if made_up[0] is None:
        return None
    verdicts = [0] * len(counts)
    for place, number in zip(places, made_up, strict=True):
        assert number is not None and 0 <= number <= counts[place]
        verdicts[place] = number
    return verdicts


def draft_batch(
    requests: Sequence[DraftRequest], num_drafts: int, rows: Rows, device: torch.device, *, sample: bool
) -> DraftBatch:
    """How these requests draw their drafts, see `DraftHost`; with `sample` False all take what is likeliest."""
    params = [rows.params[request.row] for request in requests]
    if not sample or all(one.greedy for one in params):
        return DraftBatch.greedy(len(requests), num_drafts)
    made = [
        SamplingRow(params=one, seed=rows.seeds[request.row], position=request.num_tokens)
        for request, one in zip(requests, params, strict=True)
    ]
    return DraftBatch.make(made, num_drafts, device)


def sampling_rows(
    chunk: Chunk,
    row: int,
    rows: Rows,
    drafts: StepDrafts | None,
    index: int,
    tokens_at: Callable[[np.ndarray], np.ndarray],
) -> Iterator[SamplingRow]:
    """What is drawn of a chunk: the token behind its newest, and behind each of its drafts.

    Args:
        chunk, row: one that samples, and its row.
        rows: all of them.
        drafts: of the step, None where there are none.
        index: of the chunk in the step.
        tokens_at: the tokens at places of the row, or what stands for them; asked where penalties count them.
    """
    params, num_tokens = rows.params[row], chunk.start + chunk.num_tokens
    num_prompt = int(rows.num_prompt_tokens[row])
    tree = None if drafts is None else drafts.tree
    prompt = output = None
    for query in range(1 if drafts is None else 1 + int(drafts.counts[index])):
        path: Sequence[int] = range(query) if tree is None or query == 0 else tree.path(query - 1)
        if params.penalized:
            prompt = tokens_at(np.arange(num_prompt))
            known = np.arange(num_prompt, num_tokens)
            output = tokens_at(np.concatenate([known, num_tokens + np.array(path, dtype=np.int64)]))
        yield SamplingRow(
            params=params,
            seed=rows.seeds[row],
            position=num_tokens + len(path),
            prompt_token_ids=prompt,
            output_token_ids=output,
        )
