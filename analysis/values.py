"""One number a repeat of a point: what statistics are made of."""

from __future__ import annotations

import difflib

import numpy as np
import pandas as pd

from analysis.columns import OK, POINT_KEY
from analysis.load import Sweep
from analysis.summary import numbers

# Numbers that say where or when a run was, and measure nothing.
_NO_METRICS = frozenset(("schema_version", "repeat", "order_index"))


def metric_columns(sweep: Sweep) -> list[str]:
    """Columns of `runs` that hold any figure of a run."""
    runs = sweep.runs
    candidates = [c for c in runs.columns if not c.startswith(("cfg.", "env.")) and c not in _NO_METRICS]
    return [c for c in candidates if pd.api.types.is_numeric_dtype(runs[c]) and runs[c].notna().any()]


def repeats_of(sweep: Sweep, metric: str) -> pd.DataFrame:
    """A metric of finished runs: a row a repeat, a column a point (sweep, point_id), all points that were tried.

    Raises:
        ValueError: `runs` has no such column, or one of no numbers.
    """
    runs = sweep.runs
    if metric not in runs.columns or metric in _NO_METRICS or metric.startswith(("cfg.", "env.")):
        raise ValueError(f"metric={metric}: no such metric; {_hint(metric, metric_columns(sweep))}")
    measured = runs[metric].dropna()
    if len(measured) and not pd.api.types.is_numeric_dtype(measured.infer_objects()):
        raise ValueError(f"metric={metric}: must be a column of numbers; {_hint(metric, metric_columns(sweep))}")
    values = numbers(runs[metric]).replace([np.inf, -np.inf], np.nan)
    points = pd.MultiIndex.from_frame(runs[POINT_KEY].drop_duplicates())
    finished = runs.loc[(runs["status"] == OK) & runs["repeat"].notna(), [*POINT_KEY, "repeat"]]
    finished = finished.assign(value=values[finished.index]).drop_duplicates([*POINT_KEY, "repeat"], keep="last")
    table = finished.pivot(index="repeat", columns=POINT_KEY, values="value")
    return table.reindex(columns=points).astype("float64")


def _hint(metric: str, known: list[str]) -> str:
    near = difflib.get_close_matches(metric, known, n=4, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"measured are {', '.join(known)}" if known else "no metric was measured in any run"
