"""Synthetic sweeps of known truth, and three studies of what `analysis.compare` makes of them.

The noise is what real sweeps have: every repeat has a workload of its own, harder or easier for all points alike; the
machine drifts over the sweep, steadily and at random; each run is disturbed, more often slowed than sped up (skewed),
and some points more than others. Points take turns within a repeat, as sweeps run them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

import analysis
from analysis.columns import TABLES
from analysis.intervals import estimate

METRIC = "output_throughput_tps"
_EMPTY = {table: pd.DataFrame(columns=["sweep", *columns]) for table, columns in TABLES.items()}
WORDS = ("faster", "slower")


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Standard deviations of log throughput.

    Args:
        run: of a run alone, at the baseline.
        more: of a run at any other point, as a multiple of that.
        workload: of a repeat's workload, shared by all points.
        drift: from the first run to the last, steady.
        walk: of the random drift over the whole sweep.
    """

    run: float = 0.02
    more: float = 1.5
    workload: float = 0.05
    drift: float = 0.05
    walk: float = 0.02


def make_sweep(
    rng: np.random.Generator,
    ratios: Sequence[float],
    repeats: int,
    noise: Noise | None = None,
    configs: Sequence[dict[str, object]] | None = None,
) -> analysis.Sweep:
    """Points whose throughputs have these ratios, the first of them 1.

    Args:
        ratios: one a point.
        repeats: of each point.
        configs: `cfg.*` columns of each point; a size of its own by default.
    """
    noise = noise or Noise()
    num_points, num_runs = len(ratios), len(ratios) * repeats
    walk = np.cumsum(rng.normal(size=num_runs)) * noise.walk / np.sqrt(num_runs)
    slowing = noise.drift * np.arange(num_runs) / num_runs + walk
    workloads = noise.workload * rng.normal(size=repeats)
    rows = []
    for order in range(num_runs):
        repeat, turn = divmod(order, num_points)
        place = (turn + repeat) % num_points
        # Gamma of shape 2: skewness 1.4.
        disturbed = noise.run * (noise.more if place else 1.0) * (rng.gamma(2) - 2) / np.sqrt(2)
        config = configs[place] if configs else {"cfg.size": place}
        rows.append(
            {
                "sweep": "synthetic",
                "run_id": f"{place:012x}-r{repeat}",
                "point_id": f"{place:012x}",
                "repeat": repeat,
                "order_index": order,
                "status": "ok",
                "schema_version": 1,
                "workload_sha256": str(repeat),
                METRIC: 400 * ratios[place] * np.exp(workloads[repeat] - slowing[order] - disturbed),
                **config,
            }
        )
    return sweep_of(pd.DataFrame(rows))


@contextmanager
def spared_collector() -> Iterator[None]:
    """statsmodels collects garbage at every correction: 60 ms a thousand times, most of it spent on loaded modules."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def sweep_of(runs: pd.DataFrame, name: str = "synthetic") -> analysis.Sweep:
    """A sweep in memory; columns that are not given are null."""
    missing = [column for column in TABLES["runs"] if column not in runs]
    runs = pd.concat([runs, pd.DataFrame(None, index=runs.index, columns=missing, dtype="object")], axis=1)
    tables = _EMPTY | {"runs": runs}
    return analysis.Sweep(folders=(Path(name),), **tables, configs={}, warnings=())


# Of a row of `analysis.compare`, whether it says that there is a difference.
Judge = Callable[[pd.Series], bool]
# The intervals of log ratios to the first point, for all other points.
Interval = Callable[[analysis.Sweep], list[tuple[float, float]]]


def ours(sweep: analysis.Sweep) -> list[tuple[float, float]]:
    made = analysis.compare(sweep)
    return list(np.log(made[["ratio_low", "ratio_high"]]).itertuples(index=False, name=None))


def bootstrap(sweep: analysis.Sweep) -> list[tuple[float, float]]:
    """As `analysis.compare(sweep, interval="bootstrap")`, without the rest of it."""
    logs = _logs(sweep)
    made = [estimate(one - logs[0], method="bootstrap") for one in logs[1:]]
    return [(one.low, one.high) for one in made]


def unpaired(sweep: analysis.Sweep) -> list[tuple[float, float]]:
    """Wrong on purpose: Welch's interval, as if repeats of two points had nothing in common."""
    logs = _logs(sweep)
    return [tuple(stats.ttest_ind(one, logs[0], equal_var=False).confidence_interval()) for one in logs[1:]]


def normal(sweep: analysis.Sweep) -> list[tuple[float, float]]:
    """Wrong on purpose: paired, but 1.96 standard errors, as if the spread were known."""
    made = []
    logs = _logs(sweep)
    for one in logs[1:]:
        mean, error = (one - logs[0]).mean(), stats.sem(one - logs[0])
        made.append((mean - 1.96 * error, mean + 1.96 * error))
    return made


def _logs(sweep: analysis.Sweep) -> np.ndarray:
    ordered = sweep.runs.sort_values(["point_id", "repeat"])
    num_points = ordered["point_id"].nunique()
    return np.log(ordered[METRIC].to_numpy(dtype=float).reshape(num_points, -1))


@spared_collector()
def coverage(
    num_sweeps: int, seed: int, intervals: dict[str, Interval], repeats: Sequence[int] = (3, 4, 5, 7, 10)
) -> pd.DataFrame:
    """How many of the intervals contain the truth.

    Returns:
        A row a number of repeats and one for `all`, a column a method: shares; and `num`, how many intervals.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(num_sweeps):
        num_repeats = repeats[i % len(repeats)]
        ratios = [1.0, *np.exp(rng.normal(0, 0.2, size=rng.integers(1, 5)))]
        noise = Noise(
            run=rng.uniform(0.005, 0.05),
            more=rng.uniform(1, 2),
            workload=rng.uniform(0, 0.1),
            drift=rng.uniform(-0.1, 0.1),
        )
        sweep = make_sweep(rng, ratios, num_repeats, noise)
        for name, interval in intervals.items():
            for ratio, (low, high) in zip(ratios[1:], interval(sweep), strict=True):
                rows.append((name, num_repeats, low <= np.log(ratio) <= high))
    found = pd.DataFrame(rows, columns=["method", "repeats", "covers"])
    by = found.pivot_table(index="repeats", columns="method", values="covers", aggfunc="mean")
    by.loc["all"] = found.groupby("method")["covers"].mean()
    counts = found[found["method"] == next(iter(intervals))].groupby("repeats").size()
    by["num"] = [int(counts.get(at, counts.sum())) for at in by.index]
    return by[[*intervals, "num"]]


def says_so(row: pd.Series) -> bool:
    return row["verdict"] in WORDS


def uncorrected(row: pd.Series) -> bool:
    """Wrong on purpose: p < 0.05, however many were tried and however small the difference."""
    return row["p"] < 0.05


@spared_collector()
def false_verdicts(num_sweeps: int, seed: int, num_comparisons: int, judge: Judge = says_so) -> tuple[float, float]:
    """Equal points against each other.

    Returns:
        The share of comparisons called a difference, and the share of sweeps with at least one.
    """
    rng = np.random.default_rng(seed)
    called = []
    for i in range(num_sweeps):
        noise = Noise(run=rng.uniform(0.005, 0.05), more=rng.uniform(1, 2))
        sweep = make_sweep(rng, [1.0] * (num_comparisons + 1), (3, 5, 7, 10)[i % 4], noise)
        called.append([judge(row) for _, row in analysis.compare(sweep).iterrows()])
    return float(np.mean(called)), float(np.any(called, axis=1).mean())


@spared_collector()
def planted(
    num: int, seed: int, pilot_repeats: int, slowdown: float = 0.05, advised: Callable[[float], int] = int
) -> tuple[float, float]:
    """A first sweep of equal points advises a number of repeats; a second one of that many has a planted slow-down.

    Returns:
        The share of second sweeps that were called slower, and the median number of repeats advised.
    """
    rng = np.random.default_rng(seed)
    found, repeats = [], []
    for _ in range(num):
        noise = Noise(run=rng.uniform(0.005, 0.03), more=rng.uniform(1, 2))
        pilot = analysis.compare(make_sweep(rng, [1.0, 1.0], pilot_repeats, noise))
        num_repeats = max(3, min(advised(pilot["repeats_needed"].iloc[0]), 300))
        sweep = make_sweep(rng, [1.0, 1 - slowdown], num_repeats, noise)
        found.append(analysis.compare(sweep)["verdict"].iloc[0] == "slower")
        repeats.append(num_repeats)
    return float(np.mean(found)), float(np.median(repeats))
