from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.planning import detectable_effect, power, repeats_needed, spread_bound


@pytest.mark.parametrize(("effect", "spread", "pairs", "comparisons"), [(0.05, 0.03, 6, 1), (0.1, 0.03, 4, 7)])
def test_power_is_what_simulated_experiments_find(effect: float, spread: float, pairs: int, comparisons: int) -> None:
    rng = np.random.default_rng(0)
    logs = rng.normal(math.log1p(effect), spread, size=(20_000, pairs))
    error = logs.std(axis=1, ddof=1) / math.sqrt(pairs)
    low = logs.mean(axis=1) - stats.t.ppf(0.975, pairs - 1) * error
    p = 2 * stats.t.sf(np.abs(logs.mean(axis=1)) / error, pairs - 1)
    found = ((low > math.log1p(0.01)) & (p * comparisons < 0.05)).mean()
    assert power(effect, spread, pairs, num_comparisons=comparisons, margin=0.01) == pytest.approx(found, abs=0.012)
    # The study can tell: without the band more would be found.
    assert power(effect, spread, pairs) > found + 0.02


def test_the_bound_lies_above_the_spread_and_comes_down_with_more_repeats() -> None:
    bounds = [spread_bound(0.03, pairs) for pairs in (2, 3, 5, 10, 1000)]
    assert bounds == sorted(bounds, reverse=True)
    assert 0.03 < bounds[-1] < 0.031
    # By its definition: a sample's spread exceeds this share of the truth with the stated chance.
    rng = np.random.default_rng(1)
    samples = rng.normal(0, 0.03, size=(4000, 5)).std(axis=1, ddof=1)
    assert np.mean([spread_bound(one, 5) > 0.03 for one in samples]) == pytest.approx(0.8, abs=0.02)


@given(st.floats(0.001, 0.2), st.integers(2, 30), st.floats(0.02, 0.3), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_advised_repeats_suffice_and_one_fewer_does_not(
    spread: float, pairs: int, effect: float, comparisons: int
) -> None:
    needed = repeats_needed(spread, pairs, effect, num_comparisons=comparisons, margin=0.01)
    if math.isinf(needed):
        return
    bound = spread_bound(spread, pairs)
    options = {"num_comparisons": comparisons, "margin": 0.01}
    assert power(effect, bound, int(needed), **options) >= 0.899
    assert needed == 3 or power(effect, bound, int(needed) - 1, **options) < 0.901


@given(st.floats(0.001, 0.2), st.integers(3, 30), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_what_is_detectable_takes_just_the_repeats_there_are(spread: float, pairs: int, comparisons: int) -> None:
    effect = detectable_effect(spread, pairs, num_comparisons=comparisons, margin=0.01)
    if math.isfinite(effect):
        assert repeats_needed(spread, pairs, effect * 1.001, num_comparisons=comparisons, margin=0.01) <= pairs
        less = (effect - 0.01) * 0.9 + 0.01
        assert pairs == 3 or repeats_needed(spread, pairs, less, num_comparisons=comparisons, margin=0.01) > pairs - 1


def test_more_comparisons_take_more_repeats() -> None:
    needed = [repeats_needed(0.05, 5, 0.05, num_comparisons=many, margin=0.01) for many in (1, 5, 50)]
    assert needed == sorted(needed) and needed[0] < needed[-1]


def test_without_spread_the_fewest_repeats_do_and_without_two_repeats_nothing_is_known() -> None:
    assert repeats_needed(0.0, 3, 0.05, margin=0.01) == 3
    assert detectable_effect(0.0, 3, margin=0.01) == pytest.approx(0.01)
    assert math.isnan(repeats_needed(math.nan, 1, 0.05))
    assert math.isnan(detectable_effect(0.02, 2))


def test_a_spread_that_no_number_of_repeats_overcomes_is_infinite() -> None:
    assert repeats_needed(50.0, 3, 0.05, margin=0.01) == math.inf
    assert detectable_effect(50.0, 3, margin=0.01) == math.inf
