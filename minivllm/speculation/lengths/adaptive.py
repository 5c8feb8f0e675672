"""As many drafts as pay: the lengths that are expected to give the most tokens per second.

A step of n requests gives n tokens, and one more for each draft that is accepted; it takes the time of verifying all
of them, and of the drafting. What a draft is worth is learned in `acceptance.py`, what time it takes in `costs.py`;
what does not seem to pay is tried again in `trials.py`, as often as a small share of the time allows.

Source: goodput as the objective of draft lengths, SmartSpec (later TurboSpec), arXiv 2406.14066. Here costs are curves
instead of a linear model, lengths differ by request, and exploring has a budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.speculation.lengths.acceptance import Acceptance
from minivllm.speculation.lengths.base import DraftCandidate, DraftLengthPolicy, StepOutcome
from minivllm.speculation.lengths.costs import Prices, StepCosts
from minivllm.speculation.lengths.trials import Trials

# So that nothing is divided by zero, in seconds or tokens.
_TINY = 1e-9


class Adaptive(DraftLengthPolicy):
    """Maximizes expected tokens per second, step by step.

    Args:
        num_draft_tokens: most drafts of a request in a step.
    """

    def __init__(self, *, num_draft_tokens: int) -> None:
        super().__init__(num_draft_tokens=num_draft_tokens)
        self._costs = StepCosts()
        self._acceptance = Acceptance(num_draft_tokens)
        self._trials = Trials(num_draft_tokens)

    def choose(self, candidates: Sequence[DraftCandidate], num_prefill_tokens: int) -> Sequence[int]:
        num_requests = len(candidates)
        if num_requests == 0:
            return []
        prices = Prices(self._costs, num_requests, num_prefill_tokens)
        lengths, tokens_per_s = self._best(candidates, prices)
        trial = self._trials.due(num_requests, prices, tokens_per_s, self._acceptance.survival)
        return lengths if trial is None else [min(candidate.limit, trial) for candidate in candidates]

    def observe(self, step: StepOutcome) -> None:
        self._costs.observe(step)
        if step.outcomes:
            self._acceptance.observe(step.outcomes)
            self._trials.observe(step, self._costs.plain.at(len(step.outcomes)))

    def forget(self, request_id: int) -> None:
        self._acceptance.forget(request_id)

    def _best(self, candidates: Sequence[DraftCandidate], prices: Prices) -> tuple[list[int], float]:
        """The best lengths, and the tokens per second that they promise.

        Drafts are handed out in rounds, one a request, to those for whom one more is worth it: that add more tokens
        than their time would give otherwise. The drafter's pass is paid by all together, so the round that ends with
        the best rate is the last.
        """
        acceptance = self._acceptance
        founds, abilities = zip(*[acceptance.of(candidate.request_id) for candidate in candidates], strict=True)
        # Tokens that a request's newest draft is expected to add. Several drafts of a tree share a depth.
        gains = [found * acceptance.depth_per_draft for found in founds]
        lengths = [0] * len(candidates)
        asked = list(range(len(candidates)))
        num_tokens, num_drafts, num_allowed, depth = float(len(candidates)), 0.0, 0, 0
        best, best_length, any_found = num_tokens / max(_TINY, prices.plain_s), 0, 1.0
        for length in range(1, self.num_draft_tokens + 1):
            asked = [i for i in asked if candidates[i].limit >= length]
            num_allowed += len(asked)
            if num_allowed > prices.most_drafts:
                break
            if length * acceptance.depth_per_draft > depth + _TINY:
                odds = acceptance.odds[depth]
                depth += 1
                for i in asked:
                    own = odds * abilities[i]
                    gains[i] *= own / (1 + own)
            if len(asked) > 1:
                # Seconds a draft, seen over half of them: noise is larger than one round's difference.
                half = (num_drafts + sum([founds[i] for i in asked])) / 2 + _TINY
                least = best * (prices.verify_s(2 * half) - prices.verify_s(half)) / half
                asked = [i for i in asked if gains[i] > least * founds[i]]
            if not asked:
                break
            gain = 0.0
            for i in asked:
                lengths[i] = length
                num_drafts += founds[i]
                gain += gains[i]
            num_tokens += gain
            if length == 1:
                any_found = _any([founds[i] for i in asked])
            # A step in which no request finds anything is a plain one.
            verify_s = any_found * prices.verify_s(num_drafts / any_found) + (1 - any_found) * prices.plain_s
            seconds = max(_TINY, verify_s + prices.draft_s(length))
            if num_tokens / seconds > best:
                best, best_length = num_tokens / seconds, length
            if num_tokens + gain * (self.num_draft_tokens - length) < best * seconds:
                # Later rounds add no more than this one, and take their time, too.
                break
        return [min(length, best_length) for length in lengths], best


def _any(chances: Sequence[float]) -> float:
    """Chance that something happens that happens to each with these."""
    none = 1.0
    for chance in chances:
        none *= 1 - chance
    return max(_TINY, 1 - none)
