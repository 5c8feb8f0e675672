"""Trials: what is due, and what they may cost."""

from __future__ import annotations

import pytest

from minivllm.speculation.lengths.base import DraftOutcome, StepOutcome
from minivllm.speculation.lengths.costs import Prices, StepCosts
from minivllm.speculation.lengths.trials import Trials


def _run(trials: Trials, num_steps: int, token_s: float, *, finds: bool = True, num_requests: int = 2) -> list[int]:
    """Lengths tried where nothing is ever accepted: a plain step takes 1 s, a draft `token_s` more."""
    costs, lengths = StepCosts(), []
    for _ in range(num_steps):
        prices = Prices(costs, num_requests, 0)
        length = trials.due(num_requests, prices, num_requests / max(prices.plain_s, 1e-9), [0.0] * 9) or 0
        lengths.append(length)
        found = length if finds else 0
        outcome = {"num_allowed_tokens": length, "num_draft_tokens": found, "draft_depth": found}
        step = StepOutcome(
            num_prefill_tokens=0,
            duration_s=1.0 + token_s * found * num_requests,
            draft_s=0.0,
            outcomes=tuple(DraftOutcome(request_id=i, num_accepted_tokens=0, **outcome) for i in range(num_requests)),
        )
        costs.observe(step)
        trials.observe(step, costs.plain.at(num_requests))
    return lengths


@pytest.mark.parametrize("token_s", [0.01, 0.1, 0.5])
def test_trials_lose_no_more_than_their_share_of_the_time(token_s: float) -> None:
    lengths = _run(Trials(8), 4000, token_s)
    assert sum(lengths[10:]) * token_s * 2 <= 4 * 0.004 * 4000 * 1.1
    # All are tried, and the dear ones more rarely.
    counts = [lengths.count(length) for length in (1, 3, 7, 8)]
    assert counts[-1] >= 1
    assert counts == sorted(counts, reverse=True)


def test_the_first_verifications_take_turns_with_plain_steps() -> None:
    assert _run(Trials(8), 6, 0.5) == [0, 1, 0, 1, 0, 1]


def test_a_lookup_that_finds_nothing_is_asked_again_and_again() -> None:
    lengths = _run(Trials(8), 1000, 0.5, finds=False)
    assert sum(length > 0 for length in lengths) > 500
