"""What a reader must know before believing a sweep's figures, one sentence each.

Only what the tables themselves show. Contamination: a measured prompt that the warm-up had too, or a prefix hit in the
measurement's first step, when nothing measured can be in the cache yet. Drift: a metric that changes with the order of
running, once points and repeats are allowed for; of all points, or of one against the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from analysis.columns import OK, RUN_KEY
from analysis.load import Sweep
from analysis.machine_caveats import column_of, machine_caveats
from analysis.metrics import METRICS
from analysis.naming import BASELINE, axes
from analysis.precision_caveats import quality_caveats
from analysis.summary import numbers

# Below this a spread is hardly more than an anecdote.
FEW_REPEATS = 3

# Of all drift tests of a sweep together.
FALSE_ALARMS = 0.05
# A change over the sweep that is not worth a sentence, however sure.
SMALLEST_DRIFT = 0.01
# Fewer repeats make no trend between them.
_FEWEST_ROUNDS = 4

# Wait of a run's last third of requests over that of its first third. A steady queue's ratio is about 1, seldom 2.
SATURATED = 3.0
_FEWEST_ARRIVALS = 12

_RATE = re.compile(r"^cfg\.workload\..*rate_rps$")
# Differ from run to run by nature and say nothing about the environment being another.
_RESTLESS = re.compile(r"load_?av|temperature|clock|peak_|free|available|hostname_pid|\bpid\b", re.IGNORECASE)

# What a workload is made of; a variant may name one.
_TRAFFIC = re.compile(r"^cfg\.(workload|arrivals|lengths|clients|variant)(\.|$)")


def caveats(sweep: Sweep, points: pd.DataFrame) -> list[str]:
    """Everything that limits what this sweep can say.

    Args:
        sweep: from `analysis.load`.
        points: from `analysis.points`.

    Returns:
        Sentences; none where there is nothing to say.
    """
    made: list[str] = []
    finished = sweep.runs[sweep.runs["status"] == OK]
    failed = len(sweep.runs) - len(finished)
    if failed:
        made.append(f"{failed} of {len(sweep.runs)} runs did not finish; means are over those that did.")
    if len(finished) and points["num_repeats"].max() < FEW_REPEATS:
        most = int(points["num_repeats"].max())
        reads = "no spread to judge a difference by" if most == 1 else "spreads are ranges, not confidence intervals"
        made.append(f"At most {most} finished repeat{'s' * (most > 1)} a point: {reads}.")
    ran = points[points["num_repeats"] > 0]
    if ran["num_repeats"].nunique() > 1:
        made.append(f"Points have between {ran['num_repeats'].min()} and {ran['num_repeats'].max()} finished repeats.")
    base = points[points["is_baseline"]]
    if len(points) > 1 and (base.empty or (base["num_repeats"] == 0).any()):
        which = f"the baseline point ({', '.join(base['label'])}) did not finish"
        made.append(f"No speed-ups where {which if len(base) else f'no point is called {BASELINE}'}.")
    labels = dict(zip(zip(points["sweep"], points["point_id"], strict=True), points["label"], strict=True))
    made += [*contamination(sweep), *saturation(sweep), *_repeats_by_need(finished), *drift(finished, labels)]
    made += [*machine_caveats(finished), *quality_caveats(sweep)]
    differing = [name for name, values in environment(sweep).items() if len(values) > 1 and not is_restless(name)]
    if differing:
        made.append(f"The environment changed within the sweep: {', '.join(f'`{name}`' for name in differing)}.")
    if len(finished):
        silent = [m.title for m in METRICS if m.key and not numbers(column_of(finished, m.column)).notna().any()]
        if silent:
            made.append(f"Not measured in any run: {', '.join(silent)}.")
        # Where the workload itself was swept it differs, as it should.
        swept = [column for column in axes(sweep) if _TRAFFIC.match(column)]
        workloads = finished.groupby(["repeat", *swept], dropna=False)["workload_sha256"].nunique()
        if len(workloads) and workloads.max() > 1:
            made.append("Points did not all get the same workload: they differ by more than the swept options.")
    made += [f"{warning}." for warning in sweep.warnings]
    return made


def contamination(sweep: Sweep) -> list[str]:
    """Whether warm-up and measurement touched: a sentence for each way in which they did."""
    ok = sweep.runs.loc[sweep.runs["status"] == OK, RUN_KEY]
    # In a simulation the host takes no time: a step that is scheduled while the first runs begins at the same instant.
    real = sweep.runs.loc[(sweep.runs["status"] == OK) & ~column_of(sweep.runs, "simulated").eq(True), RUN_KEY]
    requests = sweep.requests
    if ok.empty or requests.empty:
        return []
    made = []
    is_warm = requests["warmup"].eq(True)
    warm = requests.loc[is_warm & requests["prompt_sha256"].notna(), [*RUN_KEY, "prompt_sha256"]].drop_duplicates()
    again = requests.loc[~is_warm & requests["prompt_sha256"].isin(warm["prompt_sha256"])]
    again = again.merge(warm, on=[*RUN_KEY, "prompt_sha256"]).merge(ok, on=RUN_KEY)
    if len(again):
        made.append(
            f"Contamination: the warm-up had {len(again)} of the measured prompts too, in {_which(again, len(ok))}; "
            "what it left behind may have made them faster."
        )
    measured = requests.loc[~is_warm & requests["first_scheduled_s"].notna()]
    first_s = numbers(measured["first_scheduled_s"]).groupby([measured[key] for key in RUN_KEY]).transform("min")
    hits = measured.loc[measured["first_scheduled_s"].eq(first_s) & numbers(measured["num_cached_tokens"]).gt(0)]
    hits = hits.merge(real, on=RUN_KEY)
    if len(hits):
        made.append(
            f"Contamination: {len(hits)} requests of a measurement's first step found "
            f"{int(numbers(hits['num_cached_tokens']).sum())} prompt tokens in the prefix cache, in "
            f"{_which(hits, len(ok))}; nothing measured can have put them there."
        )
    return made


def _which(rows: pd.DataFrame, num_runs: int) -> str:
    run_ids = list(dict.fromkeys(rows["run_id"]))
    more = ", ..." if len(run_ids) > 3 else ""
    return f"{len(run_ids)} of {num_runs} runs ({', '.join(run_ids[:3])}{more})"


def saturation(sweep: Sweep) -> list[str]:
    """Whether requests came faster than they were served: then each waits longer than the one before, and latencies say
    how long the run was. Only where arrivals do not wait for answers (a request rate is configured)."""
    finished = sweep.runs[sweep.runs["status"] == OK]
    rates = [column for column in finished.columns if _RATE.search(column)]
    open_loop = finished[finished[rates].notna().any(axis=1)] if rates else finished[:0]
    requests = sweep.requests
    if open_loop.empty or requests.empty:
        return []
    requests = requests[requests["warmup"].ne(True) & numbers(requests["ttft_s"]).notna()]
    requests = requests.merge(open_loop[[*RUN_KEY, "point_id"]].drop_duplicates(RUN_KEY), on=RUN_KEY)
    runs = requests.groupby(RUN_KEY, sort=False)
    place = runs["arrival_s"].rank(method="first", pct=True)
    thirds = {
        name: requests[within].groupby(RUN_KEY, sort=False)["ttft_s"].median()
        for name, within in (("first", place <= 1 / 3), ("last", place > 2 / 3))
    }
    ratio = (thirds["last"] / thirds["first"])[runs.size() >= _FEWEST_ARRIVALS].dropna()
    points = open_loop.set_index(RUN_KEY)["point_id"].reindex(ratio.index)
    by_point = ratio.groupby([ratio.index.get_level_values("sweep"), points.to_numpy()]).median()
    grew = by_point[by_point >= SATURATED]
    if grew.empty:
        return []
    return [
        f"Saturation: in {len(grew)} of {len(by_point)} points with a request rate, the last third of requests waited "
        f"{grew.min():.1f} to {grew.max():.1f} times as long for the first token as the first third: requests came "
        "faster than they were served, so latencies there grow with the number of requests."
    ]


def drift(finished: pd.DataFrame, labels: Mapping[tuple[str, str], str] | None = None) -> list[str]:
    """Whether a key metric changes with the order of running: a sentence for each point that does alone, and for each
    metric that does whatever runs.

    A run's logarithm is its point's, plus its repeat's (which has a workload of its own), plus a trend. Within repeats
    the trend shows where their orders differ; between them, as a slope of the repeats' means. The two see different
    parts of the data, so their t tests are put together as Stouffer does. A point that has a trend of its own is
    told by how it departs from the others, repeat by repeat, and then has no part in the trend of all. Bonferroni over
    the metrics, and over points and metrics, with half of the false alarms each.

    Args:
        finished: runs.
        labels: of points, by sweep and point id; the id where there is none.
    """
    # Each machine has a clock and troubles of its own, and parts of a sweep that were put together count twice.
    machine = column_of(finished, "env.machine")
    parts = [
        (sweep, metric.title, _timed(runs, metric.column))
        for (sweep, _), runs in finished.groupby([finished["sweep"], machine], sort=False, dropna=False)
        for metric in METRICS
        if metric.key and metric.column in runs
    ]
    num_alone = sum(len(_trends_alone(runs)) for _, _, runs in parts)
    # Where no point can be told from the others, all false alarms are the trends' of all.
    allowed = FALSE_ALARMS / 2 if num_alone else FALSE_ALARMS
    alone: dict[tuple[str, str], list[str]] = {}
    tests = []
    for sweep, title, runs in parts:
        while found := {name: one for name, one in _trends_alone(runs).items() if one[0] < allowed / num_alone}:
            # From one that departs from the others these depart too, each by less.
            name = max(found, key=lambda name: found[name][2])
            p, change, _ = found[name]
            if abs(change) >= SMALLEST_DRIFT:
                alone.setdefault((sweep, name), []).append(f"{title} {change:+.0%} (p = {p:.1g})")
            runs = runs[runs["point_id"] != name]
        if (trend := _drift_of(runs)) is not None:
            tests.append((title, *trend))
    made = [
        f"Drift of one point: {(labels or {}).get(key, key[1])} changed from its first repeat to its last, and the "
        f"others did not change with it: {', '.join(changes)}. Its mean depends on how often it was repeated."
        for key, changes in alone.items()
    ]
    made += [
        f"Drift: {title} changed by {change:+.0%} from the first run to the last, whatever ran (p = {p:.1g}): the "
        "machine did not stay the same."
        for title, p, change in tests
        if p < allowed / len(tests) and abs(change) >= SMALLEST_DRIFT
    ]
    return made


def _timed(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Runs that have a value and a place in time: `value` (logarithm), `time`, `point_id`, `repeat`."""
    runs = runs[numbers(runs[column]).gt(0) & runs["order_index"].notna() & runs["repeat"].notna()]
    value, time = np.log(numbers(runs[column])), numbers(runs["order_index"])
    return pd.DataFrame({"value": value, "time": time, "point_id": runs["point_id"], "repeat": runs["repeat"]})


def _trends_alone(runs: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Point id -> p of a trend over its repeats against the other points, the relative change from its first to its
    last, and how steep it is: of two, which depart from each other alike, as steep as its own values are. Points with
    too few repeats are left out."""
    runs = runs[runs.groupby("repeat")["point_id"].transform("nunique").gt(1)]
    point, names = pd.factorize(runs["point_id"])
    if len(names) < 2:
        return {}
    value, repeat = runs["value"].to_numpy(), numbers(runs["repeat"]).to_numpy()
    y, time = (_without_means(v, point, pd.factorize(repeat)[0]) for v in (value, runs["time"].to_numpy()))
    # What a run owes to its place within the repeat is the machine's drift, and no point's.
    if time @ time > 1e-6:
        y = y - (time @ y) / (time @ time) * time
    found = {}
    for number, name in enumerate(names):
        mine = point == number
        t = repeat[mine] - repeat[mine].mean()
        trend = _slope(t, y[mine] - y[mine].mean(), len(t) - 2) if len(t) >= _FEWEST_ROUNDS else None
        if trend is not None:
            # A part of what it departs from is itself.
            slope, p = trend[0] * len(names) / (len(names) - 1), 2 * stats.norm.sf(abs(trend[2]))
            steepness = abs(t @ value[mine]) if len(names) == 2 else abs(slope)
            found[str(name)] = (float(p), float(np.expm1(slope * np.ptp(t))), float(steepness))
    return found


def _drift_of(runs: pd.DataFrame) -> tuple[float, float] | None:
    """(p, relative change from the first run to the last); None where the runs allow no test."""
    if runs.empty:
        return None
    value, time = runs["value"].to_numpy(), runs["time"].to_numpy()
    point, repeat = (pd.factorize(runs[key])[0] for key in ("point_id", "repeat"))
    num_points, num_rounds = point.max() + 1, repeat.max() + 1
    # Within repeats, then between them, over what is left there when each point's own level is taken off.
    y, t = _without_means(value, point, repeat), _without_means(time, point, repeat)
    trends = [_slope(t, y, len(runs) - num_points - num_rounds)]
    if num_rounds >= _FEWEST_ROUNDS:
        y, t = (_means(_without_means(v, point), repeat) for v in (value, time))
        trends.append(_slope(t - t.mean(), y - y.mean(), num_rounds - 2))
    known = [trend for trend in trends if trend is not None]
    if not known:
        return None
    slopes, errors, zs = (np.array(part) for part in zip(*known, strict=True))
    p = 2 * stats.norm.sf(abs(zs.sum()) / np.sqrt(len(zs)))
    weights = 1 / np.maximum(errors, 1e-12) ** 2
    return float(p), float(np.expm1((slopes * weights).sum() / weights.sum() * np.ptp(time)))


def _slope(t: np.ndarray, y: np.ndarray, degrees: int) -> tuple[float, float, float] | None:
    """(slope, its standard error, its t statistic as a normal deviate) of centred values; None where there is too
    little, as where each repeat has the same order and time says no more than the point does."""
    if degrees < 2 or t @ t < 1e-6:
        return None
    slope = t @ y / (t @ t)
    error = np.sqrt(((y - slope * t) ** 2).sum() / degrees / (t @ t))
    # So that a trend without any noise, or no noise at all, is still a number.
    p = stats.t.sf(abs(slope) / max(error, 1e-12), degrees)
    return float(slope), float(error), float(np.sign(slope) * stats.norm.isf(max(p, 1e-300)))


def _means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.bincount(group, values) / np.bincount(group)


def _without_means(values: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """What is left of values when the means of all groups are taken off: in turn, until nothing changes, since the
    groups need not be balanced."""
    left = values - values.mean()
    for _ in range(200):
        before = left
        for group in groups:
            left = left - _means(left, group)[group]
        if np.abs(left - before).max() <= 1e-12 * (1 + np.abs(values).max()):
            break
    return left


def _repeats_by_need(finished: pd.DataFrame) -> list[str]:
    """What it means that repeats stopped when the interval was narrow, and where they ran out first."""
    if not numbers(column_of(finished, "design.relative_half_width")).notna().any():
        return []
    made = []
    for (metric, width), runs in finished.groupby(["design.repeat_metric", "design.relative_half_width"]):
        made.append(
            f"Repeats stopped when the interval of `{metric}` was within ±{width:.3g} of its mean: stopping by what "
            "one sees makes 95 % intervals cover about 92 % with at least 3 repeats, 94 % or more with at least 5."
        )
        short = 0
        for _, point in runs.groupby(["sweep", "point_id"]):
            values = np.log(numbers(point[metric]).to_numpy(float))
            if len(values) > 1 and len(values) >= numbers(point["design.max_repeats"]).max():
                half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
                short += bool(np.expm1(half) > width)
        if short:
            made.append(f"{short} point{'s' * (short > 1)} had all repeats allowed and were still wider than that.")
    return made


def environment(sweep: Sweep, prefix: str = "env.") -> dict[str, dict[str, int]]:
    """What the runs ran on: each env.* column without its prefix, its values as text, and how many runs had each; with
    the prefix `design.`, how the sweep went about them."""
    made = {}
    for column in sweep.runs.columns:
        if column.startswith(prefix):
            values = sweep.runs[column].dropna()
            counts = values.map(str).value_counts(sort=False)
            if len(counts):
                made[column.removeprefix(prefix)] = {str(value): int(count) for value, count in counts.items()}
    return made


def is_restless(name: str) -> bool:
    """Whether an environment value may differ between runs without the environment being another."""
    return bool(_RESTLESS.search(name))
