"""Trying what does not seem to pay: costs and texts change, and what is never tried is never known."""

from __future__ import annotations

from minivllm.speculation.lengths.base import StepOutcome
from minivllm.speculation.lengths.costs import Prices, size_class

# Before anything is decided, so many verifications are made, in turn with plain steps.
_NUM_FIRST = 3
# Share of the time that each length may spend on its trials.
_BUDGET = 0.004
# What a trial costs at least, in steps: one that seems free is not made all the time either.
_LEAST_LOSS = 0.1


class Trials:
    """Lengths that are due to be tried: 0, 1, 3, 7, .., the most, each from savings of its own.

    With every step, each length saves a share of its time; what a trial is expected to lose must have been saved
    before. So a length that loses much is tried rarely, and one that costs nearly nothing (a lookup that finds nothing)
    often. Batches of different sizes do not pay for each other.

    Args:
        num_draft_tokens: most drafts of a request in a step.
    """

    def __init__(self, num_draft_tokens: int) -> None:
        self._lengths = [min((1 << bits) - 1, num_draft_tokens) for bits in range(num_draft_tokens.bit_length() + 1)]
        # Seconds, {size class: one a length}.
        self._savings: dict[int, list[float]] = {}
        self._num_plain = self._num_verifications = 0
        self._turn = 0

    def due(self, num_requests: int, prices: Prices, tokens_per_s: float, survival: list[float]) -> int | None:
        """A length for every request, or None.

        Args:
            tokens_per_s: what the step would give otherwise.
            survival: tokens that a request gets of 0, 1, .. drafts.
        """
        if self._num_verifications < _NUM_FIRST:
            return 1 if self._num_plain > self._num_verifications else 0
        savings = self._savings.get(size_class(num_requests))
        if savings is None:
            return 0
        # One length a step, in turn.
        length, saved_s = self._lengths[self._turn], savings[self._turn]
        if saved_s < _LEAST_LOSS * prices.plain_s or num_requests * length > prices.most_drafts:
            return None
        seconds = prices.verify_s(num_requests * length) + prices.draft_s(length)
        # Believed to take no longer than each draft and its verification as steps of their own: so no error is forever.
        seconds = min(seconds, prices.plain_s * (1 + 2 * length))
        loss_s = seconds - num_requests * (1 + survival[length]) / tokens_per_s
        return length if saved_s >= loss_s else None

    def observe(self, step: StepOutcome, step_s: float) -> None:
        """A step is over.

        Args:
            step_s: what it would take without drafts.
        """
        found = max([outcome.num_draft_tokens for outcome in step.outcomes])
        self._num_verifications += found > 0
        self._num_plain += found == 0
        savings = self._savings.setdefault(size_class(len(step.outcomes)), [0.0] * len(self._lengths))
        self._turn = (self._turn + 1) % len(savings)
        for i, saved_s in enumerate(savings):
            savings[i] = saved_s + _BUDGET * step_s
        savings[found.bit_length()] = 0.0
        if not found:
            # Where drafts were asked for and none came, nothing was learned: that is still due, but for its price.
            asked = max([outcome.num_allowed_tokens for outcome in step.outcomes])
            savings[asked.bit_length()] -= step.draft_s
