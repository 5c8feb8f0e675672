"""A plan while it is made, and what came of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minivllm.plan import BlockCopy, BlockSwap, Chunk, NewRow, StepPlan, TableUpdate
from minivllm.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What a commit did: who got which tokens, who ended."""

    emitted: tuple[tuple[int, tuple[int, ...]], ...] = ()
    finished: tuple[int, ...] = ()


class PlanBuilder:
    """A plan in the making: only `schedule` sees it."""

    __slots__ = (
        *("budget", "chunks", "closed", "copies", "decodes", "kind", "new_rows", "scheduled", "updates"),
        *("preempted", "swapped_in", "swaps_in", "swaps_out"),
    )

    def __init__(self, budget: int) -> None:
        self.budget = budget
        # Requests that run their newest token alone, and the chunks of all others.
        self.decodes: list[Request] = []
        self.chunks: list[Chunk] = []
        self.new_rows: list[NewRow] = []
        self.updates: list[TableUpdate] = []
        self.copies: list[BlockCopy] = []
        self.swaps_out: list[BlockSwap] = []
        self.swaps_in: list[BlockSwap] = []
        self.preempted: set[int] = set()
        # Whose blocks come back in this step: no copy may read them yet.
        self.swapped_in: set[int] = set()
        self.scheduled: set[int] = set()
        # No one is admitted any more: seats, blocks or budget refused somebody who came first.
        self.closed = False
        # Prefill or decode, where a policy does not mix them.
        self.kind: bool | None = None

    @property
    def is_empty(self) -> bool:
        return not self.decodes and not self.chunks

    def add_decodes(self, requests: Sequence[Request]) -> None:
        """Running requests with nothing but their newest token to compute."""
        self.decodes.extend(requests)
        self.scheduled.update([request.request_id for request in requests])
        self.budget -= len(requests)
        if self.kind is None and requests:
            self.kind = False

    def add_chunk(self, request: Request, num_tokens: int) -> None:
        """The next tokens of a request."""
        start = request.num_computed_tokens
        samples = start + num_tokens == request.num_tokens
        if self.kind is None:
            self.kind = request.is_prefill
        self.chunks.append(Chunk(request.request_id, start, num_tokens, samples))
        self.scheduled.add(request.request_id)
        self.budget -= num_tokens

    def plan(self, step: int, released: tuple[int, ...], idle_until_s: float | None) -> StepPlan:
        return StepPlan(
            step=step,
            released=released,
            new_rows=tuple(self.new_rows),
            table_updates=tuple(self.updates),
            copies=tuple(self.copies),
            decodes=tuple([request.request_id for request in self.decodes]),
            decode_starts=tuple([request.num_computed_tokens for request in self.decodes]),
            others=tuple(self.chunks),
            swaps_out=tuple(self.swaps_out),
            swaps_in=tuple(self.swaps_in),
            idle_until_s=idle_until_s,
        )
