"""A plan while it is made, and what came of one."""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.plan import BlockCopy, BlockSwap, Chunk, NewRow, TableUpdate


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What a commit did: who got which tokens, who ended."""

    emitted: tuple[tuple[int, tuple[int, ...]], ...] = ()
    finished: tuple[int, ...] = ()


class PlanBuilder:
    """A plan in the making: only `schedule` sees it."""

    __slots__ = (
        "budget",
        "chunks",
        "closed",
        "copies",
        "kind",
        "new_rows",
        "scheduled",
        "swapped_in",
        "swaps_in",
        "swaps_out",
        "updates",
    )

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.chunks: list[Chunk] = []
        self.new_rows: list[NewRow] = []
        self.updates: list[TableUpdate] = []
        self.copies: list[BlockCopy] = []
        self.swaps_out: list[BlockSwap] = []
        self.swaps_in: list[BlockSwap] = []
        # Whose blocks come back in this step: no copy may read them yet.
        self.swapped_in: set[int] = set()
        self.scheduled: set[int] = set()
        # No one is admitted any more: seats, blocks or budget refused somebody who came first.
        self.closed = False
        # Prefill or decode, where a policy does not mix them.
        self.kind: bool | None = None
