"""What becomes of drafts, learned from verdicts.

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
_DECAY = 0.98
_LEAST = 4.0
# (accepted, evaluated) as if seen before anything was: it is hope that makes one try.
_HOPE = (1.5, 2.0)
# What is known of others counts as so many verdicts on a request; what is known of one depth, on the next.
_OTHERS = 2.0
_DEPTH_BEFORE = 4.0
# Chances stay away from 0 and 1 by as much, so that odds are finite.
_MARGIN = 0.02
# Newest value's share of a running mean.
_NEWEST = 0.1


class _Request:
    """What was seen of one request.

    Args:
        found: of the drafts that it is allowed, the share that the drafter finds, as others have it.
    """

    __slots__ = ("accepted", "depth", "evaluated", "found", "step")

    def __init__(self, found: float) -> None:
        # Verdicts, old ones counting less, and the step of the last.
        self.accepted = self.evaluated = 0.0
        self.step = 0
        # Running means.
        self.depth = 1.0
        self.found = found

    def observe(self, step: int, num_accepted: int, num_evaluated: int, depth: int) -> None:
        left = _left(self.evaluated, step - self.step)
        self.accepted = self.accepted * left + num_accepted
        self.evaluated = self.evaluated * left + num_evaluated
        self.depth += _NEWEST * (depth - self.depth)
        self.step = step


class Acceptance:
    """Estimates for requests that draft.

    Args:
        num_draft_tokens: most drafts of a request in a step.

    Attributes:
        odds: of acceptance at each depth, for a request like all others, `[num_draft_tokens]`.
        survival: drafts accepted of 0, 1, .. in a row, for a request like all others, `[num_draft_tokens + 1]`.
        depth_per_draft: 1; less in a tree, whose depths have several drafts each.
    """

    def __init__(self, num_draft_tokens: int) -> None:
        self._accepted, self._evaluated = [0.0] * num_draft_tokens, [0.0] * num_draft_tokens
        self._accepted[0], self._evaluated[0] = _HOPE
        self._step = self._last_step = 0
        self._found = 1.0
        self._requests: dict[int, _Request] = {}
        self.depth_per_draft = 1.0
        self._estimate()

    def of(self, request_id: int) -> tuple[float, float]:
        """Of a request, old or new: the share of its allowed drafts that is found, and its ability (1 is average)."""
        request = self._requests.get(request_id)
        if request is None:
            request = self._requests[request_id] = _Request(self._found)
        if not request.evaluated:
            return request.found, 1.0
        others = self._mean[round(request.depth) - 1]
        own = (request.accepted + _OTHERS * others) / (request.evaluated + _OTHERS)
        return request.found, own * (1 - others) / (others * (1 - min(own, 1 - _MARGIN)))

    def forget(self, request_id: int) -> None:
        """A request has ended."""
        self._requests.pop(request_id, None)

    def observe(self, outcomes: Sequence[DraftOutcome]) -> None:
        """A step is over. Of requests that ended with it, only what they say of others is kept."""
        self._step += 1
        num_drafts = num_depths = 0
        # Requests by how many of their drafts were accepted, and evaluated.
        accepted, evaluated = [0] * (len(self._accepted) + 1), [0] * (len(self._accepted) + 1)
        for outcome in outcomes:
            if not outcome.num_allowed_tokens:
                continue
            found = outcome.num_draft_tokens / outcome.num_allowed_tokens
            self._found += _NEWEST * (found - self._found) / len(outcomes)
            request = self._requests.get(outcome.request_id)
            if request is not None:
                request.found += _NEWEST * (found - request.found)
            depth, good = outcome.draft_depth, outcome.num_accepted_tokens
            if depth:
                num_drafts += outcome.num_draft_tokens
                num_depths += depth
                seen = min(good + 1, depth)
                accepted[good] += 1
                evaluated[seen] += 1
                if request is not None:
                    request.observe(self._step, good, seen, depth)
        if num_drafts:
            self.depth_per_draft += _NEWEST * (num_depths / num_drafts - self.depth_per_draft)
            self._add(accepted, evaluated)
            self._estimate()

    def _add(self, accepted: Sequence[int], evaluated: Sequence[int]) -> None:
        left = _left(self._evaluated[0], self._step - self._last_step)
        self._last_step = self._step
        # Who got as far as depth i had a verdict at all depths before.
        num_accepted = num_evaluated = 0
        for i in range(len(self._accepted) - 1, -1, -1):
            num_accepted += accepted[i + 1]
            num_evaluated += evaluated[i + 1]
            self._accepted[i] = self._accepted[i] * left + num_accepted
            self._evaluated[i] = self._evaluated[i] * left + num_evaluated

    def _estimate(self) -> None:
        chance, weight, survival = 0.0, 0.0, 1.0
        self.odds: list[float] = []
        survivals: list[float] = []
        for accepted, evaluated in zip(self._accepted, self._evaluated, strict=True):
            chance = (accepted + weight * chance) / (evaluated + weight)
            chance, weight = max(_MARGIN, min(1 - _MARGIN, chance)), _DEPTH_BEFORE
            survival *= chance
            self.odds.append(chance / (1 - chance))
            survivals.append(survival)
        gains = list(accumulate(survivals))
        self.survival = [0.0, *gains]
        # Of the verdicts that drafts of so many depths get, the share that is good.
        self._mean = [gain / (1 + gain - last) for gain, last in zip(gains, survivals, strict=True)]


def _left(num_verdicts: float, num_steps: int) -> float:
    """Share of old verdicts' weight that is left after so many steps."""
    return 1.0 if num_verdicts <= _LEAST else max(_DECAY**num_steps, _LEAST / num_verdicts)
