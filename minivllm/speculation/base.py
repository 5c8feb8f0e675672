"""The drafting seam: someone proposes the next tokens, and the target verifies them all in one pass.

Two kinds. A `HostDrafter` looks at tokens alone, knows no tensor and needs ten lines. A `ModelDrafter` (`model.py`)
computes on the device. Either way the runner asks for drafts at the beginning of a step, for the whole batch; what was
accepted, the drafter is told when the step is over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minivllm.speculation.target import DraftTarget


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftRequest:
    """A request that may draft in this step.

    Args:
        request_id: of it.
        row: where the runner keeps its tokens and its block table.
        num_tokens: tokens known; the newest, at position `num_tokens - 1`, has no K/V yet, all others have.
        num_draft_tokens: most drafts that it can use, 1 or more.
    """

    request_id: int
    row: int
    num_tokens: int
    num_draft_tokens: int


class Drafter:
    """Base of all drafters.

    Args:
        target: the model that is drafted for, and the engine around it.
    """

    def __init__(self, *, target: DraftTarget) -> None:
        self.target = target

    def start(self, request_id: int, token_ids: Sequence[int]) -> None:
        """A request starts, or starts again after a preemption, with these tokens known."""

    def extend(self, request_id: int, num_tokens: int, token_ids: Sequence[int]) -> None:
        """A step gave the request these tokens, accepted drafts and one more; it knows `num_tokens` with them."""

    def end(self, request_id: int) -> None:
        """The request ended, or was preempted: nothing about it needs to be kept. Unknown ids are left alone."""


class HostDrafter(Drafter, ABC):
    """A drafter that looks at tokens alone."""

    @abstractmethod
    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        """Drafts for each request, in their order: token ids, none to its `num_draft_tokens`."""

    def num_accepted(self, request: DraftRequest, num_draft_tokens: int) -> int | None:
        """A verdict made up instead of the target's own; None leaves it to the target."""
        return None
