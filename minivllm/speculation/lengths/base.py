"""The seam of draft lengths: before each step a policy says how many drafts each decoding request may get.

It is told what every step cost and what came of its drafts, so it can learn both. It reads no clock: times are handed
to it, and are virtual where the engine is simulated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftCandidate:
    """A request that decodes in the coming step and may draft.

    `limit` is the most drafts that it can use, at least 1: what its context, its `max_tokens` and
    `speculation.num_draft_tokens` leave.
    """

    request_id: int
    num_output_tokens: int
    limit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftOutcome:
    """What came of one request's step: `num_accepted_tokens + 1` tokens. There are no drafts where the policy allowed
    none, or the drafter found none."""

    request_id: int
    # What the policy had allowed.
    num_allowed_tokens: int
    num_draft_tokens: int
    # Drafts on the longest path: `num_draft_tokens`, but for a tree.
    draft_depth: int
    num_accepted_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutcome:
    """One step and its cost.

    `duration_s` is that of the whole step, scheduling included; `draft_s` the part of it that drafted, 0 where nothing
    was.
    """

    num_prefill_tokens: int
    duration_s: float
    draft_s: float
    # Of every decoding request, those that did not draft included.
    outcomes: tuple[DraftOutcome, ...]


class DraftLengthPolicy(ABC):
    """Base of all policies.

    Args:
        num_draft_tokens: most drafts of a request in a step, `speculation.num_draft_tokens`.
    """

    def __init__(self, *, num_draft_tokens: int) -> None:
        self.num_draft_tokens = num_draft_tokens

    @abstractmethod
    def choose(self, candidates: Sequence[DraftCandidate], num_prefill_tokens: int) -> Sequence[int]:
        """Drafts for each candidate, in their order: 0 to its limit.

        Args:
            candidates: all decoding requests of the coming step that could draft.
            num_prefill_tokens: other tokens in the same step.
        """

    def observe(self, step: StepOutcome) -> None:
        """A step is over."""

    def forget(self, request_id: int) -> None:
        """A request has ended."""
