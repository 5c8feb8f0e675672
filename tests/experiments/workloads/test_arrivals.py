"""Arrivals have the rate, the variation and the tails of their distribution, exactly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loads import NUM_DRAWS, check_distribution, make_part
from scipy import integrate, stats

from experiments.compose import groups
from experiments.workloads.arrivals.base import Arrivals, Renewal, Scalable
from experiments.workloads.arrivals.closed_loop import ClosedLoop
from experiments.workloads.arrivals.constant import Constant
from experiments.workloads.arrivals.gamma import Gamma
from experiments.workloads.arrivals.poisson import Poisson
from experiments.workloads.arrivals.ramp import Ramp
from experiments.workloads.arrivals.trace import Trace
from experiments.workloads.arrivals.weibull import Weibull

RATE = 7.0
WEIBULL_MEAN = stats.weibull_min(0.6).mean()
RENEWALS: dict[str, tuple[Renewal, Any]] = {
    "poisson": (Poisson(rate_rps=RATE), stats.expon(scale=1 / RATE)),
    "bursty": (Gamma(rate_rps=RATE, burstiness=0.25), stats.gamma(0.25, scale=4 / RATE)),
    "even": (Gamma(rate_rps=RATE, cv=0.5), stats.gamma(4, scale=1 / (4 * RATE))),
    "weibull": (Weibull(rate_rps=RATE, shape=0.6), stats.weibull_min(0.6, scale=1 / (RATE * WEIBULL_MEAN))),
}


def _times(arrivals: Arrivals, count: int, seed: int = 0) -> np.ndarray:
    return np.array(list(islice(arrivals.times(np.random.default_rng(seed)), count)), dtype=np.float64)


@pytest.mark.parametrize("name", RENEWALS)
def test_gaps_have_the_mean_the_variation_and_the_tails_of_their_distribution(name: str) -> None:
    arrivals, distribution = RENEWALS[name]
    assert distribution.mean() == pytest.approx(1 / RATE)
    check_distribution(arrivals.gaps(NUM_DRAWS, np.random.default_rng(1)), distribution)


@pytest.mark.parametrize("name", RENEWALS)
def test_times_are_the_sums_of_gaps_whatever_the_blocks(name: str) -> None:
    arrivals, distribution = RENEWALS[name]
    times = _times(arrivals, NUM_DRAWS)
    assert np.array_equal(times, np.cumsum(arrivals.gaps(NUM_DRAWS, np.random.default_rng(0))))
    assert abs(NUM_DRAWS / times[-1] / RATE - 1) < 4 * distribution.std() * RATE / np.sqrt(NUM_DRAWS)


@pytest.mark.parametrize("most", [3, 10])
def test_a_cap_on_the_gaps_would_be_seen(most: float) -> None:
    arrivals, distribution = RENEWALS["poisson"]
    gaps = np.minimum(arrivals.gaps(NUM_DRAWS, np.random.default_rng(1)), most / RATE)
    with pytest.raises(AssertionError):
        check_distribution(gaps, distribution)


def test_counts_of_a_poisson_process_vary_as_much_as_their_mean() -> None:
    counts = np.bincount(_times(Poisson(rate_rps=5.0), NUM_DRAWS).astype(int))[:-1]
    assert np.mean(counts) == pytest.approx(5, rel=0.01)
    # The standard error of a variance of n counts is sqrt(2 / n) of it.
    assert np.var(counts) / np.mean(counts) == pytest.approx(1, abs=4 * np.sqrt(2 / counts.size))


def test_burstiness_is_one_over_the_squared_variation() -> None:
    assert np.array_equal(_times(Gamma(rate_rps=3.0, burstiness=0.25), 50), _times(Gamma(rate_rps=3.0, cv=2.0), 50))


def test_constant_arrivals_do_not_drift() -> None:
    times = _times(Constant(rate_rps=3.0), NUM_DRAWS)
    assert times[-1] == NUM_DRAWS / 3.0
    assert np.allclose(np.diff(times), 1 / 3, rtol=1e-8)


def test_a_closed_loop_has_no_times() -> None:
    assert list(islice(ClosedLoop(concurrency=3).times(np.random.default_rng(0)), 4)) == [None] * 4


def _rate_at(ramp: Ramp, at_s: float) -> float:
    """The rate of a ramp as its definition says."""
    whole_s = sum(phase["duration_s"] for phase in ramp.phases)
    if at_s >= whole_s and not ramp.cycle:
        last = ramp.phases[-1]
        return ramp.rate_scale * last.get("until_rps", last["rate_rps"])
    at_s %= whole_s
    for phase in ramp.phases:
        if at_s < phase["duration_s"]:
            until = phase.get("until_rps", phase["rate_rps"])
            return ramp.rate_scale * (phase["rate_rps"] + (until - phase["rate_rps"]) * at_s / phase["duration_s"])
        at_s -= phase["duration_s"]
    return _rate_at(ramp, 0.0)


def _area(ramp: Ramp, until_s: float) -> float:
    """Expected requests up to an instant, by quadrature between the corners."""
    corners, at_s = [0.0], 0.0
    lengths = [phase["duration_s"] for phase in ramp.phases] * (200 if ramp.cycle else 1)
    for length in lengths:
        at_s += length
        corners.append(min(at_s, until_s))
        if at_s >= until_s:
            break
    corners.append(until_s)
    # Off the corners, where the rate jumps.
    pieces = [(a, b) for a, b in zip(corners, corners[1:], strict=False) if b > a]
    return sum(integrate.fixed_quad(np.vectorize(lambda t: _rate_at(ramp, t)), a, b, n=2)[0] for a, b in pieces)


RATES = st.one_of(st.just(0.0), st.floats(0.05, 9.0))
PHASES = st.lists(
    st.fixed_dictionaries({"duration_s": st.floats(0.1, 20.0), "rate_rps": RATES}, optional={"until_rps": RATES}),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(phases=PHASES, cycle=st.booleans(), scale=st.floats(0.3, 3.0))
def test_a_ramp_is_a_poisson_process_on_the_area_under_its_rate(
    phases: list[dict[str, float]], cycle: bool, scale: float
) -> None:
    if cycle:
        phases = [*phases, {"duration_s": 1.0, "rate_rps": 1.0}]
    else:
        phases = [*phases, {"duration_s": 1.0, "rate_rps": 0.0, "until_rps": 0.5}]
    ramp = Ramp(phases=phases, cycle=cycle, rate_scale=scale)
    times, unit = _times(ramp, 40), _times(Poisson(rate_rps=1.0), 40)
    assert np.all(np.diff(times) >= 0)
    assert [_area(ramp, t) for t in times[::9]] == pytest.approx(unit[::9], rel=1e-6)


def test_a_ramp_has_the_rate_of_each_phase() -> None:
    ramp = make_part("arrivals", "ramp", cycle=True, rate_scale=3.0)
    # A round is 180 s with 2, on average 5, and 8 requests a second, three times.
    times = _times(ramp, NUM_DRAWS)
    rounds = int(times[-1] // 180)
    into = times[times < rounds * 180] % 180
    for begin, end, rate in ((0, 60, 2.0), (60, 90, 3.5), (90, 120, 6.5), (120, 180, 8.0)):
        expected = 3 * rate * (end - begin) * rounds
        assert abs(((into >= begin) & (into < end)).sum() - expected) < 4 * np.sqrt(expected)
    # Where the rate is level, requests are spread evenly.
    assert stats.kstest(into[into < 60] / 60, "uniform").pvalue > 0.001


def test_the_last_rate_of_a_ramp_goes_on() -> None:
    ramp = Ramp(phases=[{"duration_s": 1.0, "rate_rps": 50.0}, {"duration_s": 1.0, "rate_rps": 0.0, "until_rps": 5.0}])
    gaps = np.diff(_times(ramp, NUM_DRAWS)[200:])
    check_distribution(gaps, stats.expon(scale=0.2))


def test_times_of_a_file_are_counted_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text("id,at\na,105.0\nb,101.0\nc,102.5\n")
    assert _times(Trace(path=str(path), column="at"), 9).tolist() == [0.0, 1.5, 4.0]
    assert _times(Trace(path=str(path), column="at", time_scale=2.0), 9).tolist() == [0.0, 0.75, 2.0]


@pytest.mark.parametrize("member", sorted(set(groups()["arrivals"]) - {"workload", "closed_loop", "trace"}))
def test_what_has_a_rate_can_have_more_of_it(member: str) -> None:
    arrivals = make_part("arrivals", member)
    assert isinstance(arrivals, Scalable)
    counts = [(_times(one, 9000) < 180).sum() for one in (arrivals, arrivals.scaled(6.0))]
    assert counts[1] / counts[0] == pytest.approx(6, rel=0.25)


def test_what_has_no_rate_has_not(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text("arrival_s\n1\n")
    for arrivals in (ClosedLoop(concurrency=1), Trace(path=str(path))):
        assert not isinstance(arrivals, Scalable)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ClosedLoop(concurrency=0), "arrivals.concurrency=0: must be a whole number, 1 or more"),
        (lambda: Poisson(rate_rps=0), "arrivals.rate_rps=0: must be a number above 0"),
        (lambda: Constant(rate_rps=float("inf")), "arrivals.rate_rps=inf"),
        (lambda: Poisson(rate_rps="4"), "arrivals.rate_rps='4'"),
        (lambda: Gamma(rate_rps=1.0), "arrivals.burstiness=None: must be given"),
        (lambda: Gamma(rate_rps=1.0, burstiness=1.0, cv=1.0), "or null, whichever arrivals.cv=1.0 is not"),
        (lambda: Gamma(rate_rps=1.0, cv=-1.0), "arrivals.cv=-1.0"),
        (lambda: Weibull(rate_rps=1.0, shape=0.01), "arrivals.shape=0.01: must be a number, 0.1 or more"),
        (lambda: Ramp(phases=[]), "arrivals.phases=[]"),
        (lambda: Ramp(phases=[{"duration_s": 1}]), "arrivals.phases[0]={'duration_s': 1}"),
        (lambda: Ramp(phases=[{"duration_s": -1, "rate_rps": 1}]), "duration_s=-1: must be a number above 0"),
        (lambda: Ramp(phases=[{"duration_s": 1, "rate_rps": -1}]), "rate_rps=-1: must be a number, 0 or more"),
        (lambda: Ramp(phases=[{"duration_s": 1, "rate_rps": 0}]), "rate above 0 at the end, or cycle=true"),
        (lambda: Ramp(phases=[{"duration_s": 1, "rate_rps": 0}], cycle=True), "such that one has a rate above 0"),
        (lambda: Ramp(phases=[{"duration_s": 1, "rate_rps": 1}], rate_scale=0), "arrivals.rate_scale=0"),
        (lambda: Trace(path="/nowhere/times.csv"), "arrivals.path='/nowhere/times.csv': cannot be read"),
        (lambda: Trace(path="x", time_scale=0), "arrivals.time_scale=0"),
    ],
)
def test_impossible_arrivals_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("at\n1\n", "arrivals.column='arrival_s': must be a column of"),
        ("arrival_s\n", "must be a file with at least one time"),
        ("", "arrivals.column"),
        ("arrival_s,x\n1,2\nsoon,3\n", "line 3: arrival_s='soon' is no time in seconds"),
        ("x,arrival_s\n1\n", "line 2: arrival_s=None is no time"),
        ("arrival_s\nnan\n", "line 2: arrival_s='nan' is no time"),
    ],
)
def test_a_file_without_times_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "times.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Trace(path=str(path))
    assert says in str(caught.value) and "\n" not in str(caught.value)
