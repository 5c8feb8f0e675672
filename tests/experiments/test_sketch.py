"""Percentiles of more values than are kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.sketch import Sketch, summary

PERCENTS = (0, 1, 50, 90, 99, 99.9, 100)


def _make(values: np.ndarray, num_exact: int, parts: int) -> Sketch:
    sketch = Sketch(num_exact)
    for part in np.array_split(values, parts):
        sketch.add(part)
    return sketch


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(1e-7, 1e6) | st.sampled_from([1.0, 0.25]), min_size=1, max_size=200),
    num_exact=st.sampled_from([0, 5, 1000]),
    parts=st.integers(1, 7),
)
def test_a_percentile_is_exact_or_off_by_less_than_a_thousandth(
    values: list[float], num_exact: int, parts: int
) -> None:
    array = np.array(values)
    sketch = _make(array, num_exact, parts)
    exact = np.percentile(array, PERCENTS)
    tolerance = 1e-12 if len(values) <= num_exact else 1e-3
    assert sketch.percentiles(PERCENTS) == pytest.approx(exact, rel=tolerance)
    assert sketch.mean == pytest.approx(array.mean(), rel=1e-9)


@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0])
def test_what_is_kept_of_many_values_does_not_grow(spread: float) -> None:
    generator, sketch, every = np.random.default_rng(0), Sketch(1000), []
    for _ in range(40):
        values = generator.lognormal(-4, spread, 5000)
        sketch.add(values)
        every.append(values)
    assert not sketch._kept and sketch._counts is not None and sketch._counts.nbytes < 600_000
    exact = np.percentile(np.concatenate(every), PERCENTS)
    assert sketch.percentiles(PERCENTS) == pytest.approx(exact, rel=1e-3)


def test_what_is_missing_is_passed_over_and_nothing_is_null() -> None:
    sketch = Sketch(2)
    sketch.add(np.array([np.nan, 2.0, np.nan]))
    assert (sketch.count, sketch.mean, sketch.percentiles((50,))) == (1, 2.0, [2.0])
    assert set(summary("ttft", Sketch()).values()) == {None}
    assert set(summary("itl", Sketch())) == {"itl_mean_s", "itl_p50_s", "itl_p90_s", "itl_p99_s"}


def test_instants_that_coincide_count_as_a_nanosecond_at_most() -> None:
    sketch = Sketch(0)
    sketch.add(np.zeros(10))
    assert sketch.percentiles((50,))[0] == pytest.approx(1e-9, rel=2e-3) and sketch.mean == 0
