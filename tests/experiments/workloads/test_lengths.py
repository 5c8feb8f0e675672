"""Lengths come as often as their distribution says, and fit into the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loads import NUM_DRAWS, SIGMAS, check_counts, make_part
from scipy import stats

from experiments.compose import groups
from experiments.workloads.lengths.base import fitting
from experiments.workloads.lengths.empirical import Empirical
from experiments.workloads.lengths.fixed import Fixed
from experiments.workloads.lengths.lognormal import Lognormal
from experiments.workloads.lengths.separate import Separate
from experiments.workloads.lengths.uniform import Uniform
from experiments.workloads.lengths.zipf import Zipf

FOLDER = "experiments.workloads.lengths"
FIXED = {"_target_": f"{FOLDER}.fixed.Fixed", "num_tokens": 3}
LOGNORMAL = {"_target_": f"{FOLDER}.lognormal.Lognormal", "median_tokens": 20, "sigma": 1.0, "max_tokens": 100}
UNIFORM = {"_target_": f"{FOLDER}.uniform.Uniform", "min_tokens": 1, "max_tokens": 100}


def _draws(distribution: object, count: int = NUM_DRAWS, seed: int = 0) -> np.ndarray:
    return distribution.draw(count, np.random.default_rng(seed))


def _pairs(lengths: object, count: int, seed: int = 0) -> list[tuple[int, int]]:
    return list(islice(lengths.pairs(np.random.default_rng(seed)), count))


def _rounded(distribution: object, low: int, high: int) -> dict[int, float]:
    """Probabilities of whole numbers, bounds included, of what is rounded to them."""
    edges = distribution.cdf(np.arange(low, high + 2) - 0.5)
    return dict(zip(range(low, high + 1), np.diff(edges), strict=True))


def _check_moments(values: np.ndarray, probabilities: dict[int, float]) -> None:
    support = np.array(list(probabilities))
    weights = np.array(list(probabilities.values())) / sum(probabilities.values())
    mean = support @ weights
    deviation = np.sqrt((support - mean) ** 2 @ weights)
    assert abs(values.mean() - mean) < SIGMAS * deviation / np.sqrt(values.size)
    fourth = (support - mean) ** 4 @ weights
    assert abs(values.var() - deviation**2) < SIGMAS * np.sqrt((fourth - deviation**4) / values.size)


def test_lengths_are_uniform_with_both_ends() -> None:
    probabilities = dict.fromkeys(range(3, 18), 1 / 15)
    values = _draws(Uniform(min_tokens=3, max_tokens=17))
    check_counts(values, probabilities)
    _check_moments(values, probabilities)


@pytest.mark.parametrize(("exponent", "most"), [(0.0, 7), (0.9, 500), (2.5, 4000), (40.0, 9)])
def test_zipf_lengths_follow_their_power_law(exponent: float, most: int) -> None:
    values = _draws(Zipf(exponent=exponent, min_tokens=1, max_tokens=most))
    if exponent:
        probabilities = dict(enumerate(stats.zipfian(exponent, most).pmf(np.arange(1, most + 1)), start=1))
    else:
        probabilities = dict.fromkeys(range(1, most + 1), 1 / most)
    check_counts(values, probabilities)
    _check_moments(values, probabilities)


def test_a_power_law_may_begin_later_than_at_one() -> None:
    weights = {n: n**-1.3 for n in range(200, 301)}
    whole = sum(weights.values())
    values = _draws(Zipf(exponent=1.3, min_tokens=200, max_tokens=300))
    check_counts(values, {n: weight / whole for n, weight in weights.items()})


def test_lengths_that_are_drawn_again_keep_the_shape_of_the_rest() -> None:
    values = _draws(Lognormal(median_tokens=50, sigma=1.1, min_tokens=9, max_tokens=400))
    inside = _rounded(stats.lognorm(1.1, scale=50), 9, 400)
    whole = sum(inside.values())
    probabilities = {n: p / whole for n, p in inside.items()}
    check_counts(values, probabilities)
    _check_moments(values, probabilities)


def test_lengths_that_are_clipped_lie_on_the_bounds() -> None:
    distribution = stats.lognorm(1.1, scale=50)
    values = _draws(Lognormal(median_tokens=50, sigma=1.1, min_tokens=9, max_tokens=400, outside="clip"))
    probabilities = _rounded(distribution, 9, 400)
    probabilities[9] = distribution.cdf(9.5)
    probabilities[400] = distribution.sf(399.5)
    check_counts(values, probabilities)
    _check_moments(values, probabilities)


@settings(max_examples=50, deadline=None)
@given(middle=st.floats(1.0, 1e5), by_mean=st.booleans(), width=st.floats(0.0, 2.3), by_p99=st.booleans())
def test_middle_and_width_may_be_given_in_two_ways(middle: float, by_mean: bool, width: float, by_p99: bool) -> None:
    distribution = stats.lognorm(max(width, 1e-9), scale=middle * np.exp(-(width**2) / 2) if by_mean else middle)
    given_ = {"mean_tokens" if by_mean else "median_tokens": middle}
    given_ |= {"p99_tokens": float(distribution.ppf(0.99))} if by_p99 else {"sigma": width}
    if by_p99 and by_mean and given_["p99_tokens"] < middle:
        return
    mu, sigma = Lognormal(**given_, max_tokens=9).parameters()
    assert mu == pytest.approx(np.log(distribution.median()), abs=1e-5)
    assert sigma == pytest.approx(width, abs=1e-5)


def test_rows_of_a_file_are_drawn_as_often_as_they_were_seen(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("count,num_prompt_tokens,num_output_tokens\n1,10,3\n0,11,4\n5,12,5\n2,10,6\n")
    pairs = np.array(_pairs(Empirical(path=str(path)), NUM_DRAWS // 4))
    check_counts(pairs[:, 0] * 10 + pairs[:, 1], {103: 1 / 8, 125: 5 / 8, 106: 2 / 8})
    apart = np.array(_pairs(Empirical(path=str(path), joint=False), NUM_DRAWS // 4))
    prompts, outputs = {10: 3 / 8, 12: 5 / 8}, {3: 1 / 8, 5: 5 / 8, 6: 2 / 8}
    check_counts(
        apart[:, 0] * 10 + apart[:, 1], {10 * a + b: p * q for a, p in prompts.items() for b, q in outputs.items()}
    )


def test_a_file_without_counts_has_each_row_once(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("num_output_tokens,num_prompt_tokens\n1,7\n2,8\n1,7\n")
    pairs = np.array(_pairs(Empirical(path=str(path)), 9000))
    check_counts(pairs[:, 0], {7: 2 / 3, 8: 1 / 3})
    assert set(map(tuple, pairs.tolist())) == {(7, 1), (8, 2)}


def test_prompt_and_output_know_nothing_of_each_other() -> None:
    pairs = np.array(_pairs(Separate(prompt=UNIFORM, output=LOGNORMAL), 100_000))
    assert abs(stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic) < SIGMAS / np.sqrt(len(pairs))


@pytest.mark.parametrize("other", [FIXED, UNIFORM, LOGNORMAL])
def test_more_draws_on_one_side_do_not_shift_the_other(other: dict) -> None:
    outputs = [output for _, output in _pairs(Separate(prompt=FIXED, output=LOGNORMAL), 3000)]
    assert [output for _, output in _pairs(Separate(prompt=other, output=LOGNORMAL), 3000)] == outputs
    prompts = [prompt for prompt, _ in _pairs(Separate(prompt=LOGNORMAL, output=FIXED), 3000)]
    assert [prompt for prompt, _ in _pairs(Separate(prompt=LOGNORMAL, output=other), 3000)] == prompts


def test_pairs_that_are_drawn_again_keep_the_shape_of_those_that_fit() -> None:
    lengths = Separate(prompt=UNIFORM, output={**UNIFORM, "max_tokens": 40})
    pairs = np.array(list(islice(fitting(lengths.pairs(np.random.default_rng(0)), 60, "redraw"), NUM_DRAWS // 4)))
    fit = [(a, b) for a in range(1, 101) for b in range(1, 41) if a + b <= 60]
    check_counts(pairs[:, 0] * 1000 + pairs[:, 1], {a * 1000 + b: 1 / len(fit) for a, b in fit})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 200))
def test_a_clipped_pair_keeps_its_prompt_as_far_as_it_can(prompt: int, output: int, limit: int) -> None:
    ((got_prompt, got_output),) = islice(fitting(iter([(prompt, output)]), limit, "clip"), 1)
    assert got_prompt == min(prompt, limit - 1)
    assert got_output == min(output, limit - got_prompt) >= 1


def test_a_pair_that_does_not_fit_is_an_error_where_one_wants_it() -> None:
    with pytest.raises(
        ValueError, match=r"50 prompt and 11 output tokens=61: must be at most 60, or workload.too_long"
    ):
        list(fitting(iter([(50, 10), (50, 11)]), 60, "error"))


def test_pairs_that_never_fit_end_in_one_line() -> None:
    endless: Iterator[tuple[int, int]] = repeat((50, 11))
    with pytest.raises(ValueError, match=r"at most 60; hardly any pair is$"):
        next(fitting(endless, 60, "redraw"))


@pytest.mark.parametrize("member", sorted(set(groups()["lengths"]) - {"workload", "separate"}))
def test_every_member_gives_pairs_of_at_least_one_token(member: str) -> None:
    lengths = make_part("lengths", member)
    first = _pairs(lengths, 3000)
    assert min(map(min, first)) >= 1
    assert first == _pairs(lengths, 3000) and (member == "fixed") == (first == _pairs(lengths, 3000, seed=1))


def _pair(side: str, **changes: object) -> Callable[[], object]:
    """Makes `Separate` with one side changed: of a lognormal one, which has all that can be wrong."""
    return lambda: Separate(**{"prompt": FIXED, "output": FIXED, side: {**LOGNORMAL, **changes}})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Fixed(num_tokens=0), "num_tokens=0: must be a whole number, 1 or more"),
        (lambda: Uniform(min_tokens=3, max_tokens=2), "max_tokens=2: must be a whole number, 3 or more"),
        (lambda: Zipf(exponent=-1, min_tokens=1, max_tokens=2), "exponent=-1: must be a number, 0 or more"),
        (lambda: Zipf(exponent=1, min_tokens=1.5, max_tokens=2), "min_tokens=1.5"),
        (_pair("prompt", sigma=-1), "lengths.prompt.sigma=-1: must be 0 or more"),
        (_pair("output", median_tokens=None), "lengths.output.median_tokens=None: must be given"),
        (_pair("prompt", p99_tokens=90), "lengths.prompt.sigma=1.0: must be given or null, whichever p99_tokens=90"),
        (_pair("prompt", sigma=None, p99_tokens=9), "lengths.prompt.p99_tokens=9: must be at least the median"),
        (
            _pair("prompt", median_tokens=None, mean_tokens=10, sigma=None, p99_tokens=200),
            "lengths.prompt.p99_tokens=200: must be at most 150 with this mean",
        ),
        (_pair("prompt", median_tokens=0), "lengths.prompt.median_tokens=0: must be a number above 0"),
        (_pair("prompt", outside="drop"), "lengths.prompt.outside='drop': must be redraw or clip"),
        (_pair("prompt", wrong=1), "lengths.prompt: experiments.workloads.lengths.lognormal.Lognormal does not take"),
        (
            lambda: Separate(prompt={"num_tokens": 3}, output=FIXED),
            "lengths.prompt={'num_tokens': 3}: must be a mapping",
        ),
        (lambda: Separate(prompt=FIXED, output=7), "lengths.output=7: must be a mapping with _target_"),
        (lambda: Empirical(path="/nowhere/a.csv"), "lengths.path='/nowhere/a.csv': cannot be read"),
        (lambda: Empirical(path="x", joint="no"), "lengths.joint='no': must be true or false"),
    ],
)
def test_impossible_lengths_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_bounds_that_hardly_any_length_meets_end_in_one_line() -> None:
    never = Lognormal(median_tokens=10, sigma=0.1, min_tokens=1000, max_tokens=1001)
    with pytest.raises(ValueError, match=r"max_tokens=1001: must be such that lengths fall into min_tokens=1000"):
        _draws(never, 5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("num_prompt_tokens\n1\n", "must be a CSV file with a column num_output_tokens"),
        ("num_prompt_tokens,num_output_tokens\n", "must be a file with at least one row"),
        ("num_prompt_tokens,num_output_tokens,count\n1,1,0\n", "must be a file with at least one row"),
        ("num_prompt_tokens,num_output_tokens\n1,2\n3,0\n", "line 3: num_output_tokens='0': must be a whole number, 1"),
        ("num_prompt_tokens,num_output_tokens\n1\n", "line 2: num_output_tokens=None"),
        ("num_prompt_tokens,num_output_tokens,count\n1,1,-2\n", "line 2: count='-2': must be a whole number, 0 or"),
    ],
)
def test_a_file_without_lengths_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Empirical(path=str(path))
    assert says in str(caught.value) and "\n" not in str(caught.value)
