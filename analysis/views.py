"""Frames to look at a sweep through: one row a point, a cross table of two knobs, and the points worth having."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.baseline import knob_column
from analysis.columns import POINT_KEY
from analysis.direction import direction_of
from analysis.intervals import CONFIDENCE, check_method, estimate
from analysis.load import Sweep
from analysis.metrics import THROUGHPUT
from analysis.naming import axes, labels, short_names
from analysis.values import repeats_of


def point_means(
    sweep: Sweep, metric: str = THROUGHPUT.column, *, interval: str = "t", confidence: float = CONFIDENCE
) -> pd.DataFrame:
    """One metric, one row a point, in the order in which points first ran; `Sweep.points` is this.

    Args:
        metric: any column of numbers of `runs`; one number a repeat, so a p99 is the mean of the repeats' own.
        interval: `t`, or `bootstrap`, which is too narrow for few repeats.
        confidence: of the interval.

    Returns:
        `sweep point_id label`, one column a knob that varies, under its short name, then `n` (finished repeats with a
        figure), `mean`, `low`, `high` (the mean's interval, null under two repeats), `std`, `min`, `max`.

    Raises:
        ValueError: no such metric.
    """
    check_method(interval)
    values = repeats_of(sweep, metric)
    names = labels(sweep)
    knobs = short_names(axes(sweep))
    firsts = sweep.runs.drop_duplicates(POINT_KEY).set_index(POINT_KEY)[list(knobs)].rename(columns=knobs)
    rows = []
    for key in values.columns:
        found = values[key].dropna().to_numpy()
        made = estimate(found, method=interval, confidence=confidence)
        ends = (found.min(), found.max()) if len(found) else (np.nan, np.nan)
        rows.append((names[key], made.num, made.mean, made.low, made.high, made.spread, *ends))
    head = ["label", "n", "mean", "low", "high", "std", "min", "max"]
    table = pd.DataFrame(rows, columns=head, index=values.columns)
    # A knob called `mean` keeps its whole name.
    firsts = firsts.rename(columns={short: column for column, short in knobs.items() if short in (*head, *POINT_KEY)})
    table = pd.concat([table[["label"]], firsts.reindex(table.index), table[head[1:]]], axis=1)
    table.attrs["metric"] = metric
    return table.reset_index()


def pivot(
    sweep: Sweep, rows: str, columns: str, *, metric: str = THROUGHPUT.column, value: str = "mean"
) -> pd.DataFrame:
    """A cross table of two knobs.

    Args:
        rows, columns: knobs, as tables name them: `scheduler`, `block_size`, `cache.block_size`.
        metric: any column of numbers of `runs`.
        value: what stands in a cell: `mean` (over all repeats of all points of the cell), `median`, `min`, `max`,
            `std`, `count`.

    Returns:
        A frame with the knobs' values as index and columns, in the order in which they ran; null where nothing ran.

    Raises:
        ValueError: no such knob, metric or value.
    """
    kinds = ("mean", "median", "min", "max", "std", "count")
    if value not in kinds:
        raise ValueError(f"value={value!r}: must be one of {', '.join(kinds)}")
    chosen = {name: knob_column(sweep, name, f"{what}={name}") for name, what in ((rows, "rows"), (columns, "columns"))}
    if len(set(chosen.values())) < 2:
        raise ValueError(f"columns={columns!r}: must be another knob than rows={rows!r}")
    values = repeats_of(sweep, metric).T.reset_index().melt(id_vars=POINT_KEY, value_name="_value").dropna()
    firsts = sweep.runs.drop_duplicates(POINT_KEY)
    picked = pd.DataFrame({key: firsts[key] for key in POINT_KEY} | {n: firsts[c] for n, c in chosen.items()})
    joined = picked.merge(values[[*POINT_KEY, "_value"]], on=POINT_KEY, how="left")
    grouped = joined.groupby([rows, columns], sort=False, dropna=False)["_value"].agg(value)
    made = grouped.unstack(columns)
    return made.reindex(index=joined[rows].unique(), columns=joined[columns].unique())


def pareto(
    sweep: Sweep, x: str, y: str = THROUGHPUT.column, *, higher_is_better: Mapping[str, bool] | None = None
) -> pd.DataFrame:
    """The points that no other point beats in one metric without losing in the other.

    Args:
        x, y: columns of numbers of `runs`: speed and memory, throughput and perplexity.
        higher_is_better: for metrics of which it is not known, or to say otherwise.

    Returns:
        As `Sweep.points`, with `<x>` and `<y>` (means over repeats), and `on_front`; a point that lacks either figure
        is not on it. Points of equal figures are on it together. Ordered by x.

    Raises:
        ValueError: no such metric, or one with no better direction known.
    """
    signs = []
    for metric in (x, y):
        up = (higher_is_better or {}).get(metric, direction_of(metric).higher_is_better)
        if up is None:
            raise ValueError(f"metric={metric}: better up or down? Say so: higher_is_better={{{metric!r}: False}}")
        signs.append(1.0 if up else -1.0)
    if x == y:
        raise ValueError(f"y={y}: must be another metric than x")
    made = point_means(sweep, x).drop(columns=["low", "high", "std", "min", "max"]).rename(columns={"mean": x})
    made[y] = point_means(sweep, y)["mean"].to_numpy()
    made["on_front"] = on_front(made[[x, y]].to_numpy(dtype=float) * signs)
    made.attrs = {"x": x, "y": y}
    return made.sort_values(x, ignore_index=True, kind="stable")


def on_front(gains: np.ndarray) -> np.ndarray:
    """Which rows no other row dominates.

    Args:
        gains: `[num_points, num_metrics]`, more is better; a row with a NaN is on no front.
    """
    known = ~np.isnan(gains).any(axis=1)
    front = known.copy()
    for i in np.flatnonzero(known):
        others = gains[known]
        front[i] = not ((others >= gains[i]).all(axis=1) & (others > gains[i]).any(axis=1)).any()
    return front
