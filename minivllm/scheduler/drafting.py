"""The drafts of a plan: how many each decoding request may get, out of what budget and blocks are left.

Drafts come last. Nobody is preempted for them and nobody waits: a draft that finds no token budget or no block is not
made.
"""

from __future__ import annotations

from collections.abc import Mapping

from minivllm.blocks.tables import BlockTables
from minivllm.plan import Chunk, SampledTokens, StepPlan, StepResult, TableUpdate
from minivllm.request import Request
from minivllm.scheduler.builder import PlanBuilder
from minivllm.speculation.lengths.base import DraftCandidate, DraftLengthPolicy, DraftOutcome, StepOutcome


def decodes(chunk: Chunk) -> bool:
    """Whether a chunk is a newest token behind K/V that is there already: what drafts can follow."""
    return chunk.samples and chunk.num_tokens == 1 and chunk.start > 0


class Drafting:
    """Hands drafts out and tells the policy what came of them.

    Args:
        policy: chooses lengths.
        tables: block tables of running requests.
    """

    def __init__(self, policy: DraftLengthPolicy, tables: BlockTables) -> None:
        self._policy = policy
        self._tables = tables

    def hand_out(self, builder: PlanBuilder, requests: Mapping[int, Request]) -> None:
        """Put drafts behind the chunks of a plan in the making.

        Raises:
            ValueError: the policy allows more than there may be.
        """
        # (place among the other chunks, or None for a plain decode; candidate)
        found: list[tuple[int | None, DraftCandidate]] = []
        for request in builder.decodes:
            found += self._candidate(None, request)
        for index, chunk in enumerate(builder.chunks):
            if decodes(chunk):
                found += self._candidate(index, requests[chunk.request_id])
        if not found:
            return
        candidates = [candidate for _, candidate in found]
        num_tokens = len(builder.decodes) + sum(chunk.num_tokens for chunk in builder.chunks)
        chosen = self._policy.choose(candidates, num_tokens - len(candidates))
        if len(chosen) != len(candidates):
            raise ValueError(
                f"draft_length={type(self._policy).__name__}: answers {list(chosen)!r} for {len(candidates)} requests: "
                "must give one number each"
            )
        drafting: set[int] = set()
        for (place, candidate), wanted in zip(found, chosen, strict=True):
            if not isinstance(wanted, int) or not 0 <= wanted <= candidate.limit:
                raise ValueError(
                    f"draft_length={type(self._policy).__name__}: {wanted!r} drafts for request "
                    f"{candidate.request_id}: must be in [0, {candidate.limit}]"
                )
            end = requests[candidate.request_id].num_tokens
            num_drafts = self._make_room(builder, candidate.request_id, end, wanted)
            if num_drafts and place is None:
                builder.chunks.append(Chunk(candidate.request_id, end - 1, 1, True, num_drafts))
                drafting.add(candidate.request_id)
            elif num_drafts and place is not None:
                builder.chunks[place] = builder.chunks[place]._replace(num_draft_tokens=num_drafts)
        builder.decodes = [request for request in builder.decodes if request.request_id not in drafting]

    def _candidate(self, place: int | None, request: Request) -> list[tuple[int | None, DraftCandidate]]:
        # One token more than was accepted comes of a verification.
        limit = min(self._policy.num_draft_tokens, request.num_tokens_left - 1)
        if limit < 1:
            return []
        candidate = DraftCandidate(
            request_id=request.request_id, num_output_tokens=request.num_output_tokens, limit=limit
        )
        return [(place, candidate)]

    def _make_room(self, builder: PlanBuilder, request_id: int, end: int, wanted: int) -> int:
        """Take budget and blocks for drafts behind the first `end` tokens; returns how many find both."""
        size = self._tables.block_size
        first = len(self._tables.table(request_id))
        num_slots = (first + self._tables.pool.num_available) * size - end
        num_drafts = min(wanted, builder.budget, num_slots)
        if num_drafts < 1:
            return 0
        builder.budget -= num_drafts
        block_ids = self._tables.grow(request_id, end + num_drafts)
        if block_ids:
            builder.updates.append(TableUpdate(request_id=request_id, first=first, block_ids=block_ids))
        return num_drafts

    def observe(self, plan: StepPlan, result: StepResult, duration_s: float) -> None:
        """A step is over and committed."""
        samples = {sample.request_id: sample for sample in result.samples}
        decoding = [chunk for chunk in plan.chunks if decodes(chunk)]
        self._policy.observe(
            StepOutcome(
                num_prefill_tokens=plan.num_tokens - len(decoding),
                duration_s=duration_s,
                draft_s=result.draft_s or 0.0,
                outcomes=tuple(_outcome(chunk, samples[chunk.request_id]) for chunk in decoding),
            )
        )

    def forget(self, request_id: int) -> None:
        self._policy.forget(request_id)


def _outcome(chunk: Chunk, sample: SampledTokens) -> DraftOutcome:
    return DraftOutcome(
        request_id=chunk.request_id,
        num_allowed_tokens=chunk.num_draft_tokens,
        num_draft_tokens=sample.num_draft_tokens,
        draft_depth=sample.draft_depth,
        num_accepted_tokens=sample.num_accepted_tokens,
    )
