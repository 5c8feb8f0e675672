"""The highest rate that each policy serves within an SLO, as `minivllm capacity` found it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from analysis.load import Sweep
from analysis.naming import format_value, short_names
from analysis.summary import numbers

FILE = Path("capacity") / "capacity.parquet"
COLUMNS = ("sweep", "label", "capacity_rps", "attainment", "over_rps", "num_tried")
_RATE, _MET, _IS = "rate_rps", "slo_attainment_fraction", "is_capacity"


def capacity(sweep: Sweep) -> pd.DataFrame:
    """Read the capacities of a sweep's folders.

    Args:
        sweep: from `analysis.load`.

    Returns:
        One row a point of the knobs that varied, highest capacity first: `sweep label`, `capacity_rps`, the highest
        rate that met the SLO (null where none did), its `attainment`, `over_rps`, the lowest tried rate above it (null
        where none was), and `num_tried` rates; then the knobs. Empty where no folder has `capacity/capacity.parquet`.
        A file that lacks the columns is an error.
    """
    parts = []
    for folder in sweep.folders:
        if (folder / FILE).is_file():
            table = pq.read_table(folder / FILE).to_pandas()
            missing = [column for column in (_RATE, _MET, _IS) if column not in table]
            if missing:
                raise ValueError(f"{folder / FILE}: lacks the columns {', '.join(missing)}; write it again")
            parts.append(table.assign(sweep=folder.resolve().name))
    if not parts:
        return pd.DataFrame({name: pd.Series(dtype="object") for name in COLUMNS})
    tried = pd.concat(parts, ignore_index=True)
    knobs = [c for c in tried if c.startswith("cfg.")]
    keys = ["sweep", *knobs]
    texts = tried[keys].map(format_value)
    telling = [c for c in knobs if texts[c].nunique() > 1]
    names = short_names(telling)
    rows: list[dict[str, Any]] = []
    for _, group in tried.groupby([texts[key] for key in keys], sort=False):
        best = group[group[_IS].eq(True)].sort_values(_RATE)
        rate = float(best[_RATE].iloc[-1]) if len(best) else math.nan
        rates = numbers(group[_RATE])
        # Without a capacity every rate was too high.
        over = rates[rates > rate] if len(best) else rates
        first = group.iloc[0]
        label = ", ".join(f"{names[c]}={format_value(first[c])}" for c in telling)
        rows.append(
            {
                "sweep": first["sweep"],
                "label": label or str(first["sweep"]),
                "capacity_rps": rate,
                "attainment": float(best[_MET].iloc[-1]) if len(best) else math.nan,
                "over_rps": float(over.min()) if len(over) else math.nan,
                "num_tried": int(rates.nunique()),
                **{c: first[c] for c in telling},
            }
        )
    return pd.DataFrame(rows).sort_values("capacity_rps", ascending=False, ignore_index=True, kind="stable")
