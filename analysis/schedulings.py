"""Policies against load: every figure that schedulers are judged by, with intervals over repeats.

A figure is one number a run (a p99 is the run's own), and an interval is Student's t over the repeats of a point, as
everywhere here. Which policy is best, and whether that could be chance, is in `analysis.scheduling_winners`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.intervals import CONFIDENCE
from analysis.load import Sweep
from analysis.machine_caveats import column_of
from analysis.metrics import Metric
from analysis.scheduling_caveats import caveats_of
from analysis.scheduling_metrics import SCHEDULING_METRICS, SERVED, with_derived
from analysis.scheduling_rows import Rows, rows_of
from analysis.summary import numbers
from analysis.values import repeats_of

# Where less than this share of the load is served, the queue grows as long as the run lasts.
KEEPS_UP = 0.95
_HEAD_NAMES = "sweep point_id setting policy load simulated rest num_repeats"
_HEAD = _HEAD_NAMES.split()
_WORDS = ("sweep", "point_id", "setting", "policy", "simulated", "rest")
_OFFERED = "offered_rate_rps"


def scheduling(sweep: Sweep) -> pd.DataFrame:
    """Every policy under every load.

    Args:
        sweep: from `analysis.load`.

    Returns:
        One row a point, in the order in which they first ran: `sweep point_id setting policy load simulated rest
        num_repeats` (see `analysis.scheduling_rows`), and of each metric of `analysis.scheduling_metrics` that was
        measured its mean over repeats with the ends of its 95 % interval, `_low` and `_high`, null under two repeats.
        `.attrs` has `load_name`, `is_rate`, `policies` in order, `chosen`, of each setting the load that it is looked
        at more closely under (see `chosen_load`), and `caveats`, sentences. Empty where nothing of it was varied.
    """
    rows = rows_of(sweep)
    derived = with_derived(sweep) if rows.rows else sweep
    columns: dict[str, Any] = {
        "sweep": [row.key[0] for row in rows.rows],
        "point_id": [row.key[1] for row in rows.rows],
        **{name: [getattr(row, name) for row in rows.rows] for name in _HEAD[2:-1]},
        "num_repeats": [0] * len(rows.rows),
    }
    for metric in SCHEDULING_METRICS if rows.rows else ():
        if metric.column in derived.runs and numbers(derived.runs[metric.column]).notna().any():
            columns |= _figures(derived, rows, metric)
    made = pd.DataFrame({n: pd.Series(v, dtype="object" if n in _WORDS else "float64") for n, v in columns.items()})
    if rows.rows:
        finished = sweep.runs[sweep.runs["status"] == "ok"].groupby(["sweep", "point_id"]).size()
        keys = pd.MultiIndex.from_frame(made[["sweep", "point_id"]])
        made["num_repeats"] = finished.reindex(keys, fill_value=0).to_numpy()
    offered = numbers(column_of(sweep.runs, _OFFERED)).groupby([sweep.runs["sweep"], sweep.runs["point_id"]]).mean()
    made.attrs = {
        "load_name": rows.load_name,
        "is_rate": rows.is_rate,
        "policies": list(dict.fromkeys(made["policy"])),
        "confidence": CONFIDENCE,
    }
    made.attrs["chosen"] = {
        str(setting): chosen_load(group.assign(offered=_offered(group, offered, is_rate=rows.is_rate)))
        for setting, group in made.groupby("setting", sort=False)
    }
    made.attrs["caveats"] = caveats_of(made)
    return made


def _figures(sweep: Sweep, rows: Rows, metric: Metric) -> dict[str, np.ndarray]:
    """Mean and interval of each point."""
    table = repeats_of(sweep, metric.column)
    values = np.stack([table[row.key].to_numpy(dtype=float) for row in rows.rows], axis=1)
    known = np.isfinite(values)
    num = known.sum(axis=0)
    mean = np.where(num > 0, np.where(known, values, 0).sum(axis=0) / np.maximum(num, 1), np.nan)
    squares = np.where(known, (values - mean) ** 2, 0).sum(axis=0)
    error = np.sqrt(squares / np.maximum(num - 1, 1) / np.maximum(num, 1))
    width = np.where(num > 1, stats.t.ppf(0.5 + CONFIDENCE / 2, np.maximum(num - 1, 1)) * error, np.nan)
    return {metric.column: mean, f"{metric.column}_low": mean - width, f"{metric.column}_high": mean + width}


def _offered(group: pd.DataFrame, offered: pd.Series, *, is_rate: bool) -> np.ndarray:
    """Requests a second: what came, or else what was asked for."""
    found = offered.reindex(pd.MultiIndex.from_frame(group[["sweep", "point_id"]])).to_numpy(dtype=float)
    return np.where(np.isfinite(found), found, group["load"].to_numpy(dtype=float)) if is_rate else found


def chosen_load(group: pd.DataFrame) -> float:
    """The highest load of a setting that most of its policies keep up with: beyond it distributions say how long the
    run was. The middle one where that is not known; NaN where no load was varied.

    Args:
        group: rows of a setting of `scheduling`, with `offered`, the arrivals a second.
    """
    loads = sorted(group["load"].dropna().unique())
    if not loads:
        return math.nan
    served = group[SERVED.column] / group["offered"] if SERVED.column in group else pd.Series(dtype=float)
    if served.notna().any():
        median = served.groupby(group["load"]).median()
        kept = [load for load in loads if median.get(load, math.nan) >= KEEPS_UP]
        return float(max(kept, default=loads[0]))
    return float(loads[len(loads) // 2])


def at_chosen(frame: pd.DataFrame) -> list[tuple[str, float, pd.DataFrame]]:
    """Of each setting its chosen load, and the rows under it, a policy each.

    Args:
        frame: from `scheduling`.
    """
    made = []
    for setting, group in frame.groupby("setting", sort=False):
        load = frame.attrs["chosen"][setting]
        rows = group if math.isnan(load) else group[group["load"] == load]
        made.append((str(setting), load, rows.drop_duplicates("policy")))
    return made


def load_text(frame: pd.DataFrame, load: float) -> str:
    """`rate 4 req/s`; nothing where no load was varied."""
    if math.isnan(load):
        return ""
    name, _, unit = frame.attrs["load_name"].partition(" (")
    return f"{name} {load:g} {unit.removesuffix(')')}"
