"""What the harness itself cost a sweep."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def overhead_line(rows: Sequence[Mapping[str, Any]], tracking_s: Sequence[float]) -> str | None:
    """Where the time of a run goes beside loading and measuring, in medians."""
    done = [row for row in rows if row["status"] == "ok"]
    if not done:
        return None
    parts = {name: statistics.median(row[f"{name}_s"] for row in done) for name in ("startup", "warmup", "record")}
    rest = statistics.median(
        row["wall_s"]
        - row["load_s"]
        # Time that was simulated passed for nobody.
        - (0.0 if row.get("simulated") else row["duration_s"])
        - sum(row[f"{name}_s"] for name in parts)
        # Null where there was none, and not there in rows of an older version.
        - sum(row.get(name) or 0.0 for name in ("quality_s", "reference_s"))
        for row in done
    )
    listed = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
    load_s = statistics.median(row["load_s"] for row in done)
    listed += f", rest {rest:.2f}, tracking {statistics.median(tracking_s):.2f}"
    return f"harness, median s a point: {listed}; model loading {load_s:.2f}"
