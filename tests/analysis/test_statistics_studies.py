"""`scripts/statistics_check.py` in small, with fixed seeds. Each study is shown to fail a method that is wrong."""

from __future__ import annotations

import pandas as pd
import pytest
from noisy_sweeps import bootstrap, coverage, false_verdicts, normal, ours, planted, uncorrected, unpaired


@pytest.fixture(scope="module")
def covered() -> pd.Series:
    """Shares of intervals that contain the truth, 100 sweeps."""
    methods = {"ours": ours, "bootstrap": bootstrap, "unpaired": unpaired, "normal": normal}
    found = coverage(100, 7, methods, repeats=(3, 5, 8))
    assert found.loc["all", "num"] > 200
    return found.loc["all"]


def test_intervals_cover_the_truth_as_often_as_they_say(covered: pd.Series) -> None:
    assert 0.93 <= covered["ours"] <= 0.97


@pytest.mark.parametrize("wrong", ["bootstrap", "unpaired", "normal"])
def test_wrong_intervals_are_found_out(covered: pd.Series, wrong: str) -> None:
    assert not 0.93 <= covered[wrong] <= 0.97


def test_equal_points_are_seldom_called_different() -> None:
    share, _ = false_verdicts(200, 11, num_comparisons=1)
    assert share <= 0.05


def test_in_a_sweep_of_many_points_uncorrected_verdicts_are_often_false_and_ours_are_not() -> None:
    _, ours_of_sweeps = false_verdicts(25, 12, num_comparisons=8)
    _, naive_of_sweeps = false_verdicts(25, 12, num_comparisons=8, judge=uncorrected)
    assert ours_of_sweeps <= 0.12
    assert naive_of_sweeps > 0.2


def test_a_planted_slowdown_is_found_at_the_advised_number_of_repeats() -> None:
    found, advised = planted(60, 13, pilot_repeats=5)
    assert found >= 0.9
    assert advised < 40
    half, _ = planted(60, 13, pilot_repeats=5, advised=lambda repeats: int(repeats) // 2)
    assert half < 0.9
