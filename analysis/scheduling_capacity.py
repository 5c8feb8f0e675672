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
        One row a point that was searched, highest capacity first: `sweep label`, `capacity_rps`, the highest
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
    # The rate is a knob too, which the search turned.
    rates = numbers(tried[_RATE])
    knobs = [c for c in tried if c.startswith("cfg.") and not numbers(tried[c]).equals(rates)]
    texts = tried[knobs].map(format_value)
    telling = [c for c in knobs if texts[c].nunique() > 1]
    names = short_names(telling)
    tried["_label"] = (
        tried["label"]
        if "label" in tried
        else [", ".join(f"{names[c]}={row[c]}" for c in telling) for _, row in texts.iterrows()]
    )
    rows: list[dict[str, Any]] = []
    for (name, label), group in tried.groupby(["sweep", "_label"], sort=False):
        best = group[group[_IS].eq(True)].sort_values(_RATE)
        rate = float(best[_RATE].iloc[-1]) if len(best) else math.nan
        own = rates[group.index]
        # Without a capacity every rate was too high.
        over = own[own > rate] if len(best) else own
        rows.append(
            {
                "sweep": name,
                "label": ", ".join(str(label).split()).replace(",,", ",") or name,
                "capacity_rps": rate,
                "attainment": float(best[_MET].iloc[-1]) if len(best) else math.nan,
                "over_rps": float(over.min()) if len(over) else math.nan,
                "num_tried": int(own.nunique()),
                **{c: group.iloc[0][c] for c in telling},
            }
        )
    return pd.DataFrame(rows).sort_values("capacity_rps", ascending=False, ignore_index=True, kind="stable")
