from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.intervals import check_method, estimate, holm, paired

FIGURES = st.floats(0.01, 1e6)
PAIRS = st.lists(st.tuples(FIGURES, FIGURES), min_size=3, max_size=12).map(lambda rows: np.array(rows).T)


def test_an_estimate_is_the_textbooks() -> None:
    values = np.array([100.0, 110.0, 105.0, 97.0])
    made = estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert (made.num, made.mean) == (4, 103)
    assert (made.low, made.high) == pytest.approx((low, high))
    assert made.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize("num", [0, 1])
def test_under_two_numbers_there_is_no_interval(num: int) -> None:
    made = estimate(np.full(num, 7.0))
    assert made.num == num
    assert np.isnan([made.low, made.high, made.p, made.spread]).all()


def test_repeats_that_agree_exactly_leave_nothing_to_chance() -> None:
    same = paired(np.array([3.0, 3.0, 3.0]), np.array([3.0, 3.0, 3.0]))
    assert (same.ratio, same.ratio_low, same.ratio_high, same.p, same.spread) == (1, 1, 1, 1, 0)
    # 0.1 + 0.2 is not 0.3, and yet no spread.
    rounded = paired(np.array([0.3, 0.1 + 0.2, 0.3]), np.array([0.1, 0.1, 0.1]))
    assert rounded.ratio_low == pytest.approx(3) and rounded.ratio_high == pytest.approx(3)
    assert (rounded.p, rounded.spread) == (0, 0)


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_swapping_the_two_points_turns_the_ratio_over(pairs: np.ndarray) -> None:
    there, back = paired(*pairs), paired(*pairs[::-1])
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.p == pytest.approx(back.p, abs=1e-9)
    assert there.difference == pytest.approx(-back.difference)


@given(PAIRS, st.lists(st.floats(0.1, 10), min_size=12, max_size=12))
@settings(max_examples=60, deadline=None)
def test_what_a_repeat_does_to_both_points_cancels(pairs: np.ndarray, workloads: list[float]) -> None:
    factors = np.array(workloads[: pairs.shape[1]])
    plain, hard = paired(*pairs), paired(*(pairs * factors))
    assert plain.ratio == pytest.approx(hard.ratio)
    if plain.spread > 1e-9:
        assert (plain.p, plain.ratio_low) == pytest.approx((hard.p, hard.ratio_low), rel=1e-4)


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_the_ratio_lies_in_its_interval(pairs: np.ndarray) -> None:
    made = paired(*pairs)
    assert made.ratio_low <= made.ratio * (1 + 1e-9) and made.ratio <= made.ratio_high * (1 + 1e-9)


def test_figures_of_zero_are_compared_by_differences() -> None:
    made = paired(np.array([0.0, 3.0, 2.0]), np.array([4.0, 5.0, 9.0]))
    assert np.isnan([made.ratio, made.ratio_low, made.ratio_high]).all()
    assert made.difference == pytest.approx(-13 / 3)
    assert made.p == pytest.approx(stats.ttest_rel([0, 3, 2], [4, 5, 9]).pvalue)


def test_the_bootstrap_is_narrower_than_t_for_few_repeats_and_the_same_each_time() -> None:
    values = np.array([1.0, 1.4, 0.9, 1.1, 1.2])
    boot, t = estimate(values, method="bootstrap"), estimate(values)
    assert boot.high - boot.low < 0.8 * (t.high - t.low)
    assert boot == estimate(values, method="bootstrap")
    assert boot.p == t.p


def test_an_unknown_interval_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match="interval='z': must be one of t, bootstrap"):
        check_method("z")


def test_holm_is_the_hand_computed_one() -> None:
    # 0.01 x 4; 0.03 x 3; 0.04 x 2, but not under the one before; then 0.06 as large as that.
    assert holm(np.array([0.04, 0.01, np.nan, 0.06, 0.03])) == pytest.approx(
        [0.09, 0.04, np.nan, 0.09, 0.09], nan_ok=True
    )
    assert holm(np.array([])).tolist() == []
    assert np.isnan(holm(np.array([np.nan, np.nan]))).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_holm_lowers_no_p_value_and_keeps_their_order(p: list[float]) -> None:
    values = np.array(p)
    adjusted = holm(values)
    assert (adjusted >= values - 1e-12).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(values, kind="stable")]) >= 0).all()
    assert adjusted.min() == pytest.approx(min(1, values.min() * len(values)))


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.floats(0.5, 0.999))
@settings(max_examples=30, deadline=None)
def test_the_t_interval_is_scipys(values: list[float], confidence: float) -> None:
    assume(np.std(values) > 1e-6)
    made, tested = estimate(np.array(values), confidence=confidence), stats.ttest_1samp(values, 0.0)
    assert (made.low, made.high) == pytest.approx(tuple(tested.confidence_interval(confidence)), rel=1e-9, abs=1e-9)
    assert made.p == pytest.approx(tested.pvalue, rel=1e-9, abs=1e-300)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
# statsmodels collects garbage at each call: a tenth of a second.
@settings(max_examples=8, deadline=None)
def test_holm_is_statsmodels(p: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    assert holm(np.array(p)) == pytest.approx(multipletests(p, method="holm")[1])
