"""Acceptance made up: what a system gains from drafts of a given quality, whoever might draft so well.

The drafts are nobody's, their verification is real in all that costs time, and the verdict comes from a coin. So the
text means nothing, and everything that is made of it is marked so.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.config import require
from minivllm.sampling.random import uniforms
from minivllm.speculation.base import DraftRequest, HostDrafter
from minivllm.speculation.target import DraftTarget


class Synthetic(HostDrafter):
    """Drafts that cost nothing and are accepted as often as one likes.

    Args:
        target: see `Drafter`.
        acceptance: probability that a draft is accepted, given that those before it are; one for all positions, or
            one a position, the last for all that follow.
        seed: of the coins; with a request and a position it decides each.
    """

    def __init__(self, *, target: DraftTarget, acceptance: float | Sequence[float] = 0.7, seed: int = 0) -> None:
        super().__init__(target=target)
        given = [acceptance] if isinstance(acceptance, (int, float)) else list(acceptance)
        valid = bool(given) and all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in given)
        require(valid, "speculation.acceptance", acceptance, "a probability, or a list of them")
        self._acceptance = [float(p) for p in given]
        self._seed = seed

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        return [(0,) * request.num_draft_tokens for request in requests]

    def num_accepted(self, request: DraftRequest, num_draft_tokens: int) -> int | None:
        positions = request.num_tokens + 1_000_003 * request.request_id
        drawn = uniforms([self._seed] * num_draft_tokens, [positions + i for i in range(num_draft_tokens)])
        for i, uniform in enumerate(drawn.tolist()):
            if uniform >= self._acceptance[min(i, len(self._acceptance) - 1)]:
                return i
        return num_draft_tokens
