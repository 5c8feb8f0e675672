"""How long drafts survive, learned from verdicts.

A draft at depth i is evaluated where all before it were accepted. The odds that it is accepted, too, are taken to be
those of depth i times the ability of its request (a Rasch model): depths are learned from everybody, and a request
needs few verdicts of its own to be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from minivllm.speculation.lengths.base import DraftOutcome

# Share of a verdict's weight that is left a step later, and the weight, in verdicts, that old ones keep however long
# ago they were: enough that one new one does not decide, little enough that a few do.
_DECAY = 0.97
_LEAST = 4.0
# (accepted, evaluated) as if seen before anything was: it is hope that makes one try.
_HOPE = (1.5, 2.0)
# What is known of others, or of the depth before, counts as so many verdicts.
_SHRINKAGE = 4.0
# Odds stay finite.
_MOST = 0.98
# Newest value's share of a mean.
_NEWEST = 0.1


class _Request:
    """What was seen of one request, old verdicts counting less."""

    __slots__ = ("accepted", "depth", "evaluated", "found", "step")

    def __init__(self, found: float) -> None:
        self.accepted = self.evaluated = 0.0
        self.step = 0
        # Means of its last steps: depth of what was verified, and drafts found of those that were allowed.
        self.depth = 1.0
        self.found = found


class Acceptance:
    """Estimates of what becomes of drafts.

    Args:
        num_draft_tokens: most drafts of a request in a step.

    Attributes:
        odds: of acceptance at each depth, for a request like all others.
        survival: tokens that a request like all others gets of `k` drafts, `[num_draft_tokens + 1]`.
        depth_per_draft: 1, or less in a tree.
    """

    def __init__(self, num_draft_tokens: int) -> None:
        self._accepted, self._evaluated = [0.0] * num_draft_tokens, [0.0] * num_draft_tokens
        self._accepted[0], self._evaluated[0] = _HOPE
        self._step = self._last_step = 0
        self._found = 1.0
        self._requests: dict[int, _Request] = {}
        self.depth_per_draft = 1.0
        self._refresh()

    def add(self, request_id: int) -> tuple[float, float]:
        """The ability of a request, old or new, and the share of its allowed drafts that are found."""
        request = self._requests.get(request_id)
        if request is None:
            request = self._requests[request_id] = _Request(self._found)
        if not request.evaluated:
            return 1.0, request.found
        mean = self._mean[min(round(request.depth), len(self._mean)) - 1]
        own = min(_MOST, (request.accepted + _SHRINKAGE * mean) / (request.evaluated + _SHRINKAGE))
        return own / (1 - own) * (1 - mean) / mean, request.found

    def forget(self, request_id: int) -> None:
        """A request has ended."""
        self._requests.pop(request_id, None)

    def observe(self, outcomes: Sequence[DraftOutcome]) -> None:
        """A step is over; requests that were never added count for the others alone."""
        self._step += 1
        num_drafts = num_depths = 0
        # How many drafts of how many depths were accepted, and evaluated.
        accepted, evaluated = [0] * (len(self._accepted) + 1), [0] * (len(self._accepted) + 1)
        for outcome in outcomes:
            allowed = outcome.num_allowed_tokens
            if not allowed:
                continue
            depth, good = outcome.draft_depth, outcome.num_accepted_tokens
            found = outcome.num_draft_tokens / allowed
            self._found += _NEWEST * (found - self._found) / len(outcomes)
            request = self._requests.get(outcome.request_id)
            if request is not None:
                request.found += _NEWEST * (found - request.found)
            if not depth:
                continue
            num_drafts += outcome.num_draft_tokens
            num_depths += depth
            seen = good + 1 if good < depth else good
            accepted[good] += 1
            evaluated[seen] += 1
            if request is not None:
                left = _left(request.evaluated, self._step - request.step)
                request.step = self._step
                request.accepted = request.accepted * left + good
                request.evaluated = request.evaluated * left + seen
                request.depth += _NEWEST * (depth - request.depth)
        if num_drafts:
            self.depth_per_draft += _NEWEST * (num_depths / num_drafts - self.depth_per_draft)
            left = _left(self._evaluated[0], self._step - self._last_step)
            self._last_step = self._step
            num_accepted = num_evaluated = 0
            for i in reversed(range(len(self._accepted))):
                num_accepted += accepted[i + 1]
                num_evaluated += evaluated[i + 1]
                self._accepted[i] = self._accepted[i] * left + num_accepted
                self._evaluated[i] = self._evaluated[i] * left + num_evaluated
            self._refresh()

    def _refresh(self) -> None:
        before, survival = 0.0, 1.0
        self.odds: list[float] = []
        survivals: list[float] = []
        for i, (accepted, evaluated) in enumerate(zip(self._accepted, self._evaluated, strict=True)):
            weight = _SHRINKAGE if i else 0.0
            before = min(_MOST, max(1 - _MOST, (accepted + weight * before) / (evaluated + weight)))
            self.odds.append(before / (1 - before))
            survival *= before
            survivals.append(survival)
        gains = list(accumulate(survivals))
        self.survival = [0.0, *gains]
        # Of all verdicts on drafts of so many depths, how many are good.
        self._mean = [gain / (1 + gain - last) for gain, last in zip(gains, survivals, strict=True)]


def _left(weight: float, num_steps: int) -> float:
    """Share that is kept of so much evidence after so many steps."""
    if weight <= _LEAST:
        return 1.0
    return max(_DECAY**num_steps, _LEAST / weight)
