"""Curves and step costs, fed with times that are known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.speculation.lengths.base import DraftOutcome, StepOutcome
from minivllm.speculation.lengths.costs import Curve, Prices, StepCosts


def _feed(curve: Curve, count: int, seconds: float, times: int = 1) -> None:
    for _ in range(times):
        curve.observe(count, seconds, expected_s=curve.at(count), step_s=1.0)


def _make_step(num_requests: int, num_drafts: int, duration_s: float, *, draft_s: float = 0.0, others: int = 0):
    outcomes = tuple(
        DraftOutcome(
            request_id=i,
            num_allowed_tokens=num_drafts,
            num_draft_tokens=num_drafts,
            draft_depth=num_drafts,
            num_accepted_tokens=0,
        )
        for i in range(num_requests)
    )
    return StepOutcome(num_prefill_tokens=others, duration_s=duration_s, draft_s=draft_s, outcomes=outcomes)


def test_a_curve_is_straight_between_its_points_and_goes_on_as_steep() -> None:
    curve = Curve()
    for count in (2, 4, 8):
        _feed(curve, count, 1.0 + count / 10, times=2)
    assert curve.at(3) == pytest.approx(1.3)
    assert curve.at(12) == pytest.approx(2.2)
    assert curve.slope(8) == pytest.approx(0.1)


def test_one_slow_sample_is_doubted_and_two_are_believed() -> None:
    curve = Curve()
    _feed(curve, 1, 1.0, times=2)
    _feed(curve, 2, 20.0)
    assert curve.at(2) < 2.0
    _feed(curve, 2, 20.0)
    assert curve.at(2) == 20.0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), level=st.floats(1e-5, 10.0))
def test_spikes_and_noise_leave_a_point_near_its_median(seed: int, level: float) -> None:
    rng, curve = random.Random(seed), Curve()
    for _ in range(60):
        spike = 10.0 if rng.random() < 0.03 else 1.0
        curve.observe(5, level * spike * rng.uniform(0.8, 1.2), expected_s=curve.at(5), step_s=level)
    assert curve.at(5) == pytest.approx(level, rel=0.2)


def test_a_lasting_change_is_followed_both_ways() -> None:
    curve = Curve()
    for seconds in (1.0, 3.0, 1.0):
        _feed(curve, 4, seconds, times=60)
        assert curve.at(4) == pytest.approx(seconds, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(
    points=st.dictionaries(st.integers(1, 300), st.floats(0.0, 5.0), max_size=8),
    start=st.integers(1, 64),
    more=st.floats(0.0, 600.0),
)
def test_more_tokens_never_seem_to_take_less_than_none_more(points: dict[int, float], start: int, more: float) -> None:
    curve = Curve()
    for count, seconds in points.items():
        _feed(curve, count, seconds)
    assert curve.at(start + more, start, 1.5) >= 1.5


def test_verification_and_drafting_are_told_apart() -> None:
    costs = StepCosts()
    for _ in range(3):
        costs.observe(_make_step(4, 0, 1.0))
        costs.observe(_make_step(4, 3, 2.5, draft_s=0.9))
    prices = Prices(costs, 4, 0)
    assert prices.plain_s == pytest.approx(1.0)
    assert prices.verify_s(12) == pytest.approx(1.6)
    assert prices.draft_s(3) == pytest.approx(0.9)
    assert prices.verify_s(0) == prices.plain_s


def test_other_batch_sizes_start_from_the_nearest_one() -> None:
    costs = StepCosts()
    for _ in range(3):
        costs.observe(_make_step(8, 0, 1.0))
        costs.observe(_make_step(8, 3, 2.0))
    prices = Prices(costs, 16, 0)
    assert prices.verify_s(16) == pytest.approx(2.0)


def test_beside_a_prompt_a_draft_costs_what_a_prompt_token_costs() -> None:
    costs = StepCosts()
    for _ in range(3):
        costs.observe(_make_step(2, 0, 1.0))
        costs.observe(_make_step(2, 0, 2.0, others=254))
        costs.observe(_make_step(2, 0, 4.0, others=510))
    prices = Prices(costs, 2, 510)
    assert prices.plain_s == pytest.approx(1.0)
    assert prices.verify_s(10) - prices.plain_s == pytest.approx(10 * 2.0 / 256)


def test_no_step_may_verify_more_than_twice_the_tokens_that_one_did() -> None:
    costs = StepCosts()
    assert Prices(costs, 16, 0).most_drafts == 16
    for _ in range(2):
        costs.observe(_make_step(16, 0, 1.0))
        costs.observe(_make_step(16, 1, 1.1))
    assert Prices(costs, 16, 0).most_drafts == 48
