"""The prediction against numbers worked out by hand, and the probability that comes to an acceptance length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.speculation_costs import Decoding, costs_of, probability_of


def _make_decoding(run_s: float, *steps: Sequence[float]) -> Decoding:
    """Of (repeated, requests, accepted, verifications, milliseconds, of which drafting)."""
    rows = np.array([row for times, *row in steps for _ in range(int(times))], dtype=float).reshape(-1, 5)
    return Decoding(
        num_requests=rows[:, 0],
        num_accepted=rows[:, 1],
        num_verifications=rows[:, 2],
        duration_s=rows[:, 3] / 1e3,
        draft_s=rows[:, 4] / 1e3,
        verify_s=(rows[:, 3] - rows[:, 4]) / 1e3,
        run_s=run_s / 1e3,
    )


# 25 tokens in 55 ms of decoding and 20 ms of prefills.
PLAIN = _make_decoding(75, (10, 2, 0, 0, 4, 0), (5, 1, 0, 0, 3, 0))
# The same 25 tokens in 43 ms: 15 of them with two requests in a step, 10 with one.
DRAFTING = _make_decoding(63, (3, 2, 3, 2, 6, 1), (5, 1, 1, 1, 5, 0.5))


def test_the_prediction_is_what_its_formula_says() -> None:
    found = costs_of([DRAFTING], [PLAIN])
    assert found is not None
    # 3 steps stand for 2.5 plain ones of 4 ms each, 5 steps for 2 of 3 ms each.
    assert found.step_gain == pytest.approx(60 / 43)
    # 2.2 ms a token at the plain run's occupancies, 2.4 at the other's.
    assert found.sharing_factor == pytest.approx(2.2 / 2.4)
    assert found.rest_fraction == pytest.approx(20 / 75)
    # Of its own run it is bookkeeping: the ratio of the two durations.
    assert found.speedup == pytest.approx(75 / 63)
    assert found.plain_step_s == pytest.approx(27e-3 / 8) and found.step_s == pytest.approx(43e-3 / 8)
    assert found.draft_s == pytest.approx(5.5e-3 / 8) and found.verify_s == pytest.approx(37.5e-3 / 8)


def test_at_the_break_even_length_nothing_is_gained() -> None:
    found = costs_of([DRAFTING], [PLAIN])
    assert found is not None
    x = found.break_even_length - 1
    assert x == pytest.approx((43 / (2.2 / 2.4) - 27) / (3 * 4 + 5 * 3))
    replaced_ms = 3 * (1 + x) * 4 + 5 * (1 + x) * 3
    assert replaced_ms / 43 * found.sharing_factor == pytest.approx(1)


def test_steps_that_draft_nothing_count_with_their_cost_and_their_token() -> None:
    # Half of the steps verify nothing and cost what a plain step does.
    found = costs_of([_make_decoding(0, (4, 1, 1, 1, 4, 0), (4, 1, 0, 0, 3, 0))], [PLAIN])
    assert found is not None
    assert found.step_gain == pytest.approx((4 * 2 * 3 + 4 * 3) / (4 * 4 + 4 * 3))
    sharing = 2.2 / 3
    assert found.break_even_length == pytest.approx(1 + ((16 + 12) / sharing - 24) / (4 * 3))


@pytest.mark.parametrize(("num", "plain_ms"), [(1, 3), (2, 4), (3, 5), (5, 7), (8, 10), (16, 10)])
def test_an_occupancy_that_was_not_seen_costs_what_lies_between_its_neighbours(num: int, plain_ms: float) -> None:
    plain = [PLAIN, _make_decoding(100, (2, 8, 0, 0, 9, 0), (2, 8, 0, 0, 11, 0))]
    found = costs_of([_make_decoding(10, (1, num, 0, 1, 5, 0))], plain)
    assert found is not None and found.plain_step_s == pytest.approx(plain_ms / 1e3)


def test_what_never_only_decodes_predicts_nothing() -> None:
    empty = _make_decoding(10)
    assert costs_of([empty], [PLAIN]) is None and costs_of([DRAFTING], [empty]) is None and costs_of([], []) is None
    never = costs_of([_make_decoding(10, (3, 1, 0, 0, 3, 0))], [PLAIN])
    assert never is not None and math.isnan(never.break_even_length)


@given(st.floats(0, 1), st.lists(st.integers(0, 40), min_size=1, max_size=8).map(lambda c: sorted(c, reverse=True)))
@settings(max_examples=60, deadline=None)
def test_the_probability_that_comes_to_a_length_is_found_again(p: float, proposed: list[int]) -> None:
    length = 1 + sum(count / 40 * p ** (i + 1) for i, count in enumerate(proposed))
    found = probability_of(length, proposed, 40)
    assert 1 + sum(count / 40 * found ** (i + 1) for i, count in enumerate(proposed)) == pytest.approx(length)


def test_a_length_out_of_reach_has_no_probability() -> None:
    assert math.isnan(probability_of(3.01, [10, 10], 10))
    assert probability_of(3.0, [10, 10], 10) == 1
    assert probability_of(0.9, [10, 10], 10) == probability_of(1.0, [], 10) == 0
    assert math.isnan(probability_of(2.0, [], 0)) and math.isnan(probability_of(math.nan, [10], 10))
