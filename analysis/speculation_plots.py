"""What the plots of speculation draw, as plain data in the form of `panel.js` and `analysis.panels`.

Acceptance by position, of each drafter over all of its points, for what is accepted at a position does not depend on
how many drafts follow it; the speed-up of each drafter's best point at each batch size, beside what costs predict; and
all predictions against what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.precision_plots import json_numbers
from analysis.speculations import FEW_EVALUATED
from analysis.style import MAX_POINTS

Spec = dict[str, Any]

# More panels there is no room for.
MAX_PANELS = 6
# Between drafters at one batch size, as a part of the way to the next.
_ASIDE = 0.05
CAPTIONS = {
    "speculation-acceptance": "Of the drafts at each position that the verdict fell on, those that were accepted: all "
    f"points of a drafter together, positions with {FEW_EVALUATED} or more.",
    "speculation-speedup": "The best point of each drafter at each batch size. Marks are measured, with their 95 % "
    "intervals; dotted lines are what measured costs predict; below the dashed line drafts lose.",
    "speculation-predicted": "Every point: the speed-up that its costs predict against the measured one. On the dashed "
    "line both are the same; between the outer two they are within 10 %.",
}


def speculation_specs(frame: pd.DataFrame) -> dict[str, Spec]:
    """Of each plot that has something to show its name and what it draws.

    Args:
        frame: from `analysis.speculation`.
    """
    if frame.empty:
        return {}
    looks = {name: look for look, name in enumerate(_drafters(frame))}
    settings = list(dict.fromkeys(frame["rest"]))[:MAX_PANELS]
    groups = [(rest, frame[(frame["rest"] == rest) & frame["drafter"].isin(looks)]) for rest in settings]
    made = {
        "speculation-acceptance": [_acceptance(*one, looks, frame.attrs["num_positions"]) for one in groups],
        "speculation-speedup": [_speedups(*one, looks, frame.attrs["batch_name"]) for one in groups],
        "speculation-predicted": [_predicted(*one, looks, frame.attrs["tolerance"]) for one in groups],
    }
    return {
        name: {"kind": "panels", "least": 420, "legend": _legend(panels, looks), "panels": panels}
        for name, found in made.items()
        if (panels := [panel for panel in found if panel is not None])
    }


def _drafters(frame: pd.DataFrame) -> list[str]:
    """A dozen: the fastest, in the order in which they ran."""
    names = list(dict.fromkeys(frame["drafter"]))
    if len(names) <= MAX_POINTS:
        return names
    fastest = frame.groupby("drafter")["speedup"].max().sort_values(ascending=False, kind="stable").index[:MAX_POINTS]
    return [name for name in names if name in set(fastest)]


def _legend(panels: Sequence[Spec], looks: dict[str, int]) -> list[Spec]:
    drawn = {one["name"] for panel in panels for one in panel["series"]}
    return [{"name": name, "look": look} for name, look in looks.items() if name in drawn]


def _acceptance(rest: str, rows: pd.DataFrame, looks: dict[str, int], num_positions: int) -> Spec | None:
    series = []
    for name, group in rows.groupby("drafter", sort=False):
        sums = [group[[f"accepted_{i}", f"evaluated_{i}"]].sum() for i in range(1, num_positions + 1)]
        shares = [100 * kept / num if num >= FEW_EVALUATED else np.nan for kept, num in sums]
        if np.isfinite(shares).any():
            places = list(range(1, num_positions + 1))
            series.append(
                {"name": name, "look": looks[str(name)], "mark": True, "x": places, "y": json_numbers(shares)}
            )
    if not series:
        return None
    return {
        "title": rest,
        "height": 280,
        "x": {"label": "draft position", "min": 0.7, "max": num_positions + 0.3},
        "y": {"label": "accepted (%)", "min": 0, "max": 104},
        "series": series,
    }


def _speedups(rest: str, rows: pd.DataFrame, looks: dict[str, int], batch: str) -> Spec | None:
    known = rows[rows["speedup"].notna() & rows["batch"].notna()]
    if known["batch"].nunique() < 2:
        return None
    best = known.loc[known.groupby(["drafter", "batch"], sort=False)["speedup"].idxmax()]
    sizes = sorted(best["batch"].unique())
    places = {size: place for place, size in enumerate(sizes)}
    series = []
    drafters = list(dict.fromkeys(best["drafter"]))
    for place, name in enumerate(drafters):
        group = best[best["drafter"] == name].sort_values("batch")
        # Side by side, so that intervals do not hide each other.
        aside = _ASIDE * (place - (len(drafters) - 1) / 2)
        at = [places[size] + aside for size in group["batch"]]
        one = {"name": name, "look": looks[name], "x": json_numbers(at)}
        ends = {"ylo": json_numbers(group["speedup_low"]), "yhi": json_numbers(group["speedup_high"])}
        series.append({**one, "mark": True, "line": False, "y": json_numbers(group["speedup"]), **ends})
        series.append({**one, "dots": True, "y": json_numbers(group["predicted_speedup"])})
    panel: Spec = {
        "title": rest,
        "height": 300,
        "x": {"label": batch, "cats": [f"{size:g}" for size in sizes]},
        "y": {"label": "speed-up (×)"},
        "series": series,
        "lines": [{"x": [-0.4, len(sizes) - 0.6], "y": [1, 1]}],
    }
    _cut(panel, known["speedup"].to_numpy(dtype=float))
    return panel


def _cut(panel: Spec, middle: np.ndarray) -> None:
    """Of few repeats an interval may be so wide that it presses all else together: it ends at the edge then."""
    wide = max(0.3, float(np.ptp(middle)))
    low, high = max(0.0, middle.min() - 0.4 * wide), middle.max() + 0.4 * wide
    panel["y"] |= {"min": round(min(low, 0.95), 3), "max": round(max(high, 1.05), 3)}
    low, high = panel["y"]["min"], panel["y"]["max"]
    for one in panel["series"]:
        for end in ("ylo", "yhi"):
            if end in one:
                one[end] = [None if value is None else min(high, max(low, value)) for value in one[end]]
        if one.get("dots"):
            one["y"] = [None if value is None else min(high, max(low, value)) for value in one["y"]]


def _predicted(rest: str, rows: pd.DataFrame, looks: dict[str, int], tolerance: float) -> Spec | None:
    known = rows[rows["speedup"].notna() & rows["predicted_speedup"].notna()]
    if len(known) < 2:
        return None
    series = [
        {
            "name": name,
            "look": looks[str(name)],
            "mark": True,
            "line": False,
            "x": json_numbers(group["speedup"]),
            "y": json_numbers(group["predicted_speedup"]),
        }
        for name, group in known.groupby("drafter", sort=False)
    ]
    both = known[["speedup", "predicted_speedup"]]
    ends = [float(both.min().min()) / 1.1, float(both.max().max()) * 1.1]
    return {
        "title": rest,
        "height": 300,
        "x": {"label": "measured (×)", "log": True},
        "y": {"label": "predicted (×)", "log": True},
        "series": series,
        "lines": [{"x": ends, "y": [end * by for end in ends]} for by in (1, 1 - tolerance, 1 + tolerance)],
    }
