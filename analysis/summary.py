"""One row a point: what its repeats say together.

A repeat is one measurement; requests within it share a queue and are not independent. So means and intervals are over
repeats, and percentiles, which cannot be averaged, are taken from the pooled requests of all repeats.

Statistics proper (bootstrap, paired tests, noise floors, verdicts) will stand beside this as `compare`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from analysis.columns import OK, POINT_KEY
from analysis.load import Sweep
from analysis.metrics import METRICS, THROUGHPUT, Metric
from analysis.naming import BASELINE, VARIANT, attach, axes, format_value, labels

CONFIDENCE = 0.95


def points(sweep: Sweep, metrics: Sequence[Metric] = METRICS) -> pd.DataFrame:
    """Summarise the finished runs.

    Args:
        sweep: from `analysis.load`.
        metrics: what to summarise.

    Returns:
        One row a point in the order in which points first ran, failed ones too: `sweep point_id label order_index
        num_repeats num_failed is_baseline`; for each metric `<column>` (mean over repeats, percentiles pooled),
        `<column>_min`, `<column>_max` (over repeats), `<column>_low`, `<column>_high` (95 % t-interval of the mean,
        from two repeats on); and `speedup speedup_min speedup_max` of output throughput against the baseline. What is
        not known is null.
    """
    runs = sweep.runs
    finished = runs[runs["status"] == OK]
    names = labels(sweep)
    made = pd.DataFrame({"label": names.to_numpy()}, index=names.index)
    grouped = runs.groupby(POINT_KEY, sort=False)
    made["order_index"] = grouped["order_index"].min()
    made["num_repeats"] = finished.groupby(POINT_KEY, sort=False).size().reindex(made.index, fill_value=0)
    made["num_failed"] = grouped.size().reindex(made.index, fill_value=0) - made["num_repeats"]
    baselines = _baselines(sweep, made)
    made["is_baseline"] = [key == baselines.get(key) for key in made.index]
    requests = measured_requests(sweep)
    columns = [_summarise(finished, requests, metric, made.index) for metric in metrics]
    made = pd.concat([made, *columns, _speedups(finished, baselines, made.index)], axis=1)
    return made.reset_index().sort_values(["sweep", "order_index"], ignore_index=True, kind="stable")


def failures(sweep: Sweep) -> pd.DataFrame:
    """Runs that did not finish: `sweep run_id label repeat status reason`, the reason in one line."""
    failed = sweep.runs[sweep.runs["status"] != OK]
    names = labels(sweep)
    rows = [
        {
            "sweep": run["sweep"],
            "run_id": run["run_id"],
            "label": names[(run["sweep"], run["point_id"])],
            "repeat": run["repeat"],
            "status": run["status"],
            "reason": _reason(run),
        }
        for _, run in failed.iterrows()
    ]
    return pd.DataFrame(rows, columns=["sweep", "run_id", "label", "repeat", "status", "reason"])


def measured_requests(sweep: Sweep) -> pd.DataFrame:
    """Requests of finished runs without the warm-up's, with label and point_id."""
    requests = sweep.requests[~_truth(sweep.requests["warmup"])]
    joined = attach(sweep, requests, ["status"])
    return joined[joined["status"] == OK]


def numbers(column: pd.Series) -> pd.Series:
    """As floats; what is null or no number is NaN."""
    return pd.to_numeric(column, errors="coerce").astype("float64")


def _truth(column: pd.Series) -> pd.Series:
    if column.dtype == bool:
        return column
    return column.map(lambda value: value is not None and value is not pd.NA and value == True).astype(bool)  # noqa: E712


def _summarise(finished: pd.DataFrame, requests: pd.DataFrame, metric: Metric, index: pd.MultiIndex) -> pd.DataFrame:
    name = metric.column
    source = numbers(finished[name]) if name in finished else pd.Series(np.nan, index=finished.index)
    by_point = source.groupby([finished[key] for key in POINT_KEY], sort=False)
    made = pd.DataFrame(
        {name: by_point.mean(), f"{name}_min": by_point.min(), f"{name}_max": by_point.max()},
        index=index,
        dtype="float64",
    )
    count = by_point.count().reindex(index, fill_value=0)
    if metric.pooled is not None:
        column, quantile = metric.pooled
        pooled = numbers(requests[column]).groupby([requests[key] for key in POINT_KEY], sort=False).quantile(quantile)
        # One repeat needs no pooling; several without their requests have no percentile.
        made[name] = made[name].where(count == 1, pooled.reindex(index))
        return made.assign(**{f"{name}_low": np.nan, f"{name}_high": np.nan})
    error = by_point.sem().reindex(index)
    width = pd.Series(stats.t.ppf(0.5 + CONFIDENCE / 2, np.maximum(count - 1, 1)), index=index) * error
    return made.assign(**{f"{name}_low": made[name] - width, f"{name}_high": made[name] + width})


def _baselines(sweep: Sweep, made: pd.DataFrame) -> dict[tuple[str, str], tuple[str, str]]:
    """Each point's baseline, both by (sweep, point_id).

    It is the point of variant `baseline` that agrees on all other axes; in a sweep without variants the first point.
    """
    first_runs = sweep.runs.drop_duplicates(POINT_KEY).set_index(POINT_KEY)
    has_variant = VARIANT in first_runs and (first_runs[VARIANT] == BASELINE).any()
    others = [axis for axis in axes(sweep) if axis != VARIANT] if has_variant else []
    contexts = {key: (key[0], *(format_value(run[axis]) for axis in others)) for key, run in first_runs.iterrows()}
    candidates = made[made.index.map(lambda key: first_runs.at[key, VARIANT] == BASELINE)] if has_variant else made
    baselines: dict[tuple[str, ...], tuple[str, str]] = {}
    for key in candidates.sort_values("order_index", kind="stable").index:
        baselines.setdefault(contexts[key], key)
    return {key: baselines[context] for key, context in contexts.items() if context in baselines}


def _speedups(
    finished: pd.DataFrame, baselines: dict[tuple[str, str], tuple[str, str]], index: pd.MultiIndex
) -> pd.DataFrame:
    throughput = finished.assign(value=numbers(finished[THROUGHPUT.column])).dropna(subset=["value", "repeat"])
    by_point = {key: group.set_index("repeat")["value"] for key, group in throughput.groupby(POINT_KEY, sort=False)}
    nothing = pd.Series(dtype="float64")
    rows = []
    for key in index:
        mine, base = by_point.get(key, nothing), by_point.get(baselines.get(key), nothing)
        both = sorted(set(mine.index) & set(base.index[base > 0]))
        ratios = mine[both] / base[both]
        whole = mine[both].mean() / base[both].mean() if both else np.nan
        rows.append({"speedup": whole, "speedup_min": ratios.min(), "speedup_max": ratios.max()})
    return pd.DataFrame(rows, index=index, columns=["speedup", "speedup_min", "speedup_max"], dtype="float64")


def _reason(run: pd.Series) -> str:
    parts = [str(run[column]) for column in ("error_type", "error_message") if pd.notna(run[column])]
    lines = ": ".join(parts).strip().splitlines()
    return lines[0][:240] if lines else "no reason recorded"
