"""As many drafts as pay: the lengths that are expected to give the most tokens per second.

A step of n requests gives n tokens, and one more for each draft that is accepted; it costs what a step of so many
tokens costs, and the drafting. Both are learned while running (`acceptance.py`, `costs.py`). What is not tried is not
learned, so now and then a step tries another length, as often as a small share of the time pays for.

Source: goodput as the objective of draft lengths, SmartSpec / TurboSpec (arXiv 2406.14066, section 4). Here, costs are
curves instead of a linear model, a shared draft pass is paid by all requests together, and exploring has a budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.speculation.lengths.acceptance import Acceptance
from minivllm.speculation.lengths.base import DraftCandidate, DraftLengthPolicy, StepOutcome
from minivllm.speculation.lengths.costs import Prices, StepCosts, size_class

# Verifications in turn with plain steps before anything is decided.
_NUM_FIRST = 3
# Share of the time that each length may spend on being tried, and what a trial costs at least, in steps.
_EXPLORING = 0.004
_LEAST_PRICE = 0.1


class Adaptive(DraftLengthPolicy):
    """Maximizes expected tokens per second, step by step.

    Args:
        num_draft_tokens: most drafts of a request in a step.
    """

    def __init__(self, *, num_draft_tokens: int) -> None:
        super().__init__(num_draft_tokens=num_draft_tokens)
        self._costs = StepCosts()
        self._acceptance = Acceptance(num_draft_tokens)
        # Seconds that were saved up for trials: {size class: by bits of the length}.
        self._savings: dict[int, list[float]] = {}
        self._step = 0

    def choose(self, candidates: Sequence[DraftCandidate], num_prefill_tokens: int) -> Sequence[int]:
        if not candidates:
            return []
        prices = Prices(self._costs, len(candidates), num_prefill_tokens)
        lengths, tokens_per_s = self._best(candidates, prices)
        trial = self._trial(len(candidates), prices, tokens_per_s)
        if trial is not None:
            return [min(candidate.limit, trial) for candidate in candidates]
        return lengths

    def observe(self, step: StepOutcome) -> None:
        self._step += 1
        self._costs.observe(step)
        self._acceptance.observe(step.outcomes)
        if step.outcomes:
            self._save(step)

    def forget(self, request_id: int) -> None:
        self._acceptance.forget(request_id)

    def _best(self, candidates: Sequence[DraftCandidate], prices: Prices) -> tuple[list[int], float]:
        """Lengths, and the tokens per second that they promise.

        Drafts are handed out round by round, one a request. In each, a draft is worth it where its chance to survive
        is more than the tokens that its time would give otherwise; the round that ends with the best rate is the last.
        """
        num_requests = len(candidates)
        abilities, founds = zip(*[self._acceptance.add(c.request_id) for c in candidates], strict=True)
        survivals = [1.0] * num_requests
        lengths = [0] * num_requests
        alive = list(range(num_requests))
        num_tokens, num_drafts, seconds = float(num_requests), 0.0, prices.plain_s
        best, best_round = num_tokens / max(seconds, 1e-9), 0
        room, depth, any_found = prices.most_drafts, 0, 1.0
        per_draft = self._acceptance.depth_per_draft
        for length in range(1, self.num_draft_tokens + 1):
            alive = [i for i in alive if candidates[i].limit >= length]
            room -= len(alive)
            if not alive or room < 0:
                break
            if length * per_draft > depth + 1e-6:
                odds = self._acceptance.odds[depth]
                depth += 1
                for i in alive:
                    a = abilities[i] * odds
                    survivals[i] *= a / (1 + a)
            if len(alive) > 1:
                wanted = sum([founds[i] for i in alive])
                half = max((num_drafts + wanted) / 2, 1e-9)
                least = best * (prices.verify_s(2 * half) - prices.verify_s(half)) / half
                alive = [i for i in alive if survivals[i] * per_draft > least]
                if not alive:
                    break
            for i in alive:
                lengths[i] = length
                num_drafts += founds[i]
                num_tokens += founds[i] * survivals[i] * per_draft
            if length == 1:
                none_found = 1.0
                for i in alive:
                    none_found *= 1 - founds[i]
                any_found = max(1 - none_found, 1e-3)
            verify_s = prices.verify_s(num_drafts / any_found)
            seconds = any_found * verify_s + (1 - any_found) * prices.plain_s + prices.draft_s(length)
            rate = num_tokens / max(seconds, 1e-9)
            if rate > best:
                best, best_round = rate, length
        return [min(length, best_round) for length in lengths], best

    def _trial(self, num_requests: int, prices: Prices, tokens_per_s: float) -> int | None:
        """A length for all requests that is due to be tried; None where none is."""
        costs = self._costs
        if costs.num_verifications < _NUM_FIRST:
            return 1 if costs.num_plain_steps > costs.num_verifications else 0
        savings = self._savings.get(size_class(num_requests))
        if savings is None:
            return 0
        # One a step, in turn.
        bits = self._step % len(savings)
        length = min((1 << bits) - 1, self.num_draft_tokens)
        if savings[bits] < _LEAST_PRICE * prices.plain_s or num_requests * length > prices.most_drafts:
            return None
        seconds = prices.verify_s(num_requests * length) + prices.draft_s(length) if length else prices.plain_s
        depth = int(length * self._acceptance.depth_per_draft)
        gain_s = num_requests * (1 + self._acceptance.survival[depth]) / tokens_per_s
        return length if savings[bits] >= seconds - gain_s else None

    def _save(self, step: StepOutcome) -> None:
        num_requests = len(step.outcomes)
        savings = self._savings.setdefault(size_class(num_requests), [0.0] * (self.num_draft_tokens.bit_length() + 1))
        saved_s = _EXPLORING * self._costs.plain.at(num_requests)
        for bits in range(len(savings)):
            savings[bits] += saved_s
        longest = max([outcome.num_draft_tokens for outcome in step.outcomes])
        savings[longest.bit_length()] = 0.0
        asked = max([outcome.num_allowed_tokens for outcome in step.outcomes])
        if not longest and asked:
            # Nothing was found, so nothing was learned: the trial is still due.
            savings[asked.bit_length()] -= step.draft_s
