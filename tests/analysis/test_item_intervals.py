"""Intervals over items, by hand and against simulated items of known truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from analysis.item_intervals import Interval, per_token, positive_per_token, share, share_difference


def test_a_mean_per_token_is_worked_out_by_hand() -> None:
    # 12 over 30 tokens; the means without each item, 0.5, 0.4 and 0.3, are 0.1 off at most.
    found = per_token(np.array([2.0, 4.0, 6.0]), np.array([10, 10, 10]))
    error = math.sqrt(2 / 3 * (0.1**2 + 0.1**2))
    reach = 4.302653 * error
    assert found.value == pytest.approx(0.4)
    assert (found.low, found.high) == pytest.approx((0.4 - reach, 0.4 + reach), rel=1e-6)


def test_with_items_of_one_length_the_interval_is_students_of_their_means() -> None:
    sums = np.random.default_rng(3).normal(500, 40, 12)
    expected = stats.ttest_1samp(sums / 255, 0).confidence_interval(0.95)
    found = per_token(sums, np.full(12, 255))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_a_long_window_weighs_as_much_as_it_holds() -> None:
    assert per_token(np.array([1.0, 30.0]), np.array([1, 9])).value == pytest.approx(3.1)
    assert per_token(np.array([1.0, 30.0, math.nan]), np.array([1, 9, 0])).value == pytest.approx(3.1)


def test_without_items_nothing_is_known_and_of_one_no_interval() -> None:
    assert math.isnan(per_token(np.empty(0), np.empty(0)).value)
    alone = per_token(np.array([3.0]), np.array([6]))
    assert alone.value == 0.5 and not alone.known and not alone.exp().known and not alone.through(0, 1).known
    same = per_token(np.array([3.0, 1.5]), np.array([6, 3]))
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)
    assert Interval(value=0.5, low=-0.5, high=2).through(0, 1) == Interval(value=0.5, low=0, high=1)
    assert math.isnan(share(np.empty(0)).value) and math.isnan(share_difference(np.empty(0), np.empty(0))[1])


def test_a_divergence_has_an_interval_above_zero_that_is_longer_upwards() -> None:
    found = positive_per_token(np.array([0.1, 0.2, 9.0]), np.array([10, 10, 10]))
    assert 0 < found.low < found.value < found.high
    assert found.high / found.value == pytest.approx(found.value / found.low)
    assert positive_per_token(np.zeros(4), np.full(4, 9)) == Interval(value=0, low=0, high=0)
    # Rounding may take what is 0 below it.
    assert positive_per_token(np.array([-1e-9, 1e-10]), np.array([9, 9])).value < 0


def test_shares_are_compared_by_the_items_of_which_one_was_right() -> None:
    # 100 items: 60 right in both, 12 lost, 4 gained, 24 wrong in both.
    baseline = np.repeat([True, True, False, False], [60, 12, 4, 24])
    right = np.repeat([True, False, True, False], [60, 12, 4, 24])
    found, p = share_difference(right, baseline)
    middle, error = (5 - 13) / 102, math.sqrt((18 / 102 - (8 / 102) ** 2) / 102)
    assert found.value == pytest.approx(-0.08)
    assert (found.low, found.high) == pytest.approx((middle - 1.959964 * error, middle + 1.959964 * error), rel=1e-6)
    assert p == pytest.approx(2 * sum(math.comb(16, k) for k in range(5)) / 2**16)
    same, p = share_difference(right, right)
    assert same.value == 0 and p == 1 and same.low == pytest.approx(-same.high) and 0.02 < same.high < 0.04


NUM = 1000


def _covered(draw: Callable[[np.random.Generator], Interval], truth: float) -> float:
    """Of so many samples, the share whose interval holds the truth."""
    rng = np.random.default_rng(2)
    found = [draw(rng) for _ in range(NUM)]
    return sum(one.low <= truth <= one.high for one in found) / NUM


def _lengths(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(60, 256, 32)


def _windows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of nats of two precisions over windows that are hard or easy for both; the second is 0.02 nats worse."""
    num_tokens = _lengths(rng)
    hard = rng.gamma(8, 0.25, 32) * num_tokens
    # A hard window suffers more.
    worse = 0.02 * rng.gamma(2, 0.5, 32) * num_tokens + rng.normal(0, 0.05, 32) * np.sqrt(num_tokens)
    return hard, hard + worse, num_tokens


def test_perplexity_ratios_cover_the_truth_as_often_as_they_say() -> None:
    def draw(rng: np.random.Generator) -> Interval:
        before, after, num_tokens = _windows(rng)
        return per_token(after - before, num_tokens).exp()

    assert 0.93 <= _covered(draw, math.exp(0.02)) <= 0.97


def test_tokens_taken_for_a_sample_and_windows_weighed_alike_are_found_out() -> None:
    def of_tokens(rng: np.random.Generator) -> Interval:
        before, after, num_tokens = _windows(rng)
        gaps = np.repeat((after - before) / num_tokens, num_tokens)
        return per_token(gaps, np.ones(len(gaps)))

    def alike(rng: np.random.Generator) -> Interval:
        num_tokens = _lengths(rng)
        # Short windows are harder.
        return per_token(1 / num_tokens + rng.normal(0, 2e-4, 32), np.ones(32))

    assert _covered(of_tokens, 0.02) < 0.5
    lengths = np.arange(60, 256)
    assert _covered(alike, 1 / lengths.mean()) < 0.9


def test_unpaired_windows_would_tell_nothing() -> None:
    before, after, num_tokens = _windows(np.random.default_rng(0))
    paired, alone = per_token(after - before, num_tokens), per_token(after, num_tokens)
    assert (alone.high - alone.low) > 10 * (paired.high - paired.low)


def _divergences(rng: np.random.Generator, num_windows: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    num_tokens = rng.integers(60, 256, num_windows)
    return rng.lognormal(-4, spread, num_windows) * num_tokens, num_tokens


@pytest.mark.parametrize("num_windows", [8, 32])
def test_divergences_cover_the_truth_as_often_as_they_say(num_windows: int) -> None:
    truth = math.exp(-4 + 0.4**2 / 2)
    assert 0.91 <= _covered(lambda rng: positive_per_token(*_divergences(rng, num_windows, 0.4)), truth) <= 0.97


def test_of_very_skewed_divergences_the_plain_interval_covers_less() -> None:
    truth = math.exp(-4 + 0.8**2 / 2)
    plain = _covered(lambda rng: per_token(*_divergences(rng, 8, 0.8)), truth)
    assert plain < 0.88 < _covered(lambda rng: positive_per_token(*_divergences(rng, 8, 0.8)), truth)


@pytest.mark.parametrize(("lost", "gained"), [(0.08, 0.03), (0.02, 0.02), (0.01, 0.0), (0.25, 0.25)])
def test_differences_of_shares_cover_the_truth_as_often_as_they_say(lost: float, gained: float) -> None:
    def draw(rng: np.random.Generator) -> Interval:
        cell = rng.choice(4, 128, p=[0.5 - lost, lost, gained, 0.5 - gained])
        return share_difference(np.isin(cell, (0, 2)), np.isin(cell, (0, 1)))[0]

    assert _covered(draw, gained - lost) >= 0.935


def test_walds_interval_as_it_is_would_be_found_out() -> None:
    def wald(rng: np.random.Generator) -> Interval:
        differences = rng.choice([-1.0, 0.0], 128, p=[0.01, 0.99])
        return per_token(differences, np.ones(128))

    assert _covered(wald, -0.01) < 0.8
