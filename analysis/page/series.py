"""What the interactive plots draw, as plain data: thinned, in the units of their axes, nulls where nothing is known.

Plots with lines and labels are for a dozen points: the baseline and the fastest, as in `analysis.plots`. The frontier
has a mark for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.direction import direction_of
from analysis.metrics import THROUGHPUT, TTFT_P50, Metric
from analysis.naming import format_value
from analysis.summary import numbers

Spec = dict[str, Any]
Looks = dict[str, int]

# A curve of more places than a screen has pixels is only slow.
MAX_PLACES = 240


def figures(values: Sequence[float] | np.ndarray | pd.Series, scale: float = 1.0) -> list[float | None]:
    """JSON knows no NaN, and five digits are more than a plot shows."""
    found = np.asarray(values, dtype=float) * scale
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in found]


def frontier(points: pd.DataFrame, metrics: Sequence[Metric], by_label: Looks) -> Spec | None:
    """All metrics of all points that have a better direction; the page pairs any two."""
    rows = points[points["num_repeats"] > 0]
    chosen = []
    for metric in metrics:
        up = direction_of(metric.column).higher_is_better
        values = rows[metric.column]
        if up is not None and values.notna().sum() > 1 and values.nunique() > 1:
            chosen.append((metric, up))
    if len(rows) < 2 or len(chosen) < 2:
        return None
    names = [metric.column for metric, _ in chosen]
    x = names.index(TTFT_P50.column) if TTFT_P50.column in names else 1
    y = names.index(THROUGHPUT.column) if THROUGHPUT.column in names else 0
    return {
        "kind": "pareto",
        "points": rows["label"].tolist(),
        "looks": [by_label.get(label, -1) for label in rows["label"]],
        "base": [bool(base) for base in rows["is_baseline"]],
        "x": x,
        "y": y if y != x else int(x == 0),
        "metrics": [
            {
                "title": metric.title,
                "label": metric.heading,
                "up": up,
                "mean": figures(rows[metric.column], metric.scale),
                **{
                    end: figures(_ends(rows, metric, part), metric.scale)
                    for end, part in (("low", "min"), ("high", "max"))
                },
            }
            for metric, up in chosen
        ],
    }


def distributions(requests: pd.DataFrame, by_label: Looks) -> Spec | None:
    """TTFT, TPOT and E2E: the share of requests at or under a latency.

    Args:
        requests: from `analysis.summary.measured_requests`.
        by_label: points to show.
    """
    made: list[Spec] = []
    groups = dict(list(requests[requests["label"].isin(by_label)].groupby("label", sort=False)))
    for column, title in (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "E2E")):
        series: list[Spec] = []
        for name in by_label:
            found = np.sort(numbers(groups[name][column]).dropna().to_numpy()) if name in groups else np.empty(0)
            if len(found):
                places = np.unique(np.linspace(0, len(found) - 1, MAX_PLACES).round().astype(int))
                share = 100 * (places + 1) / len(found)
                series.append(
                    {
                        "name": name,
                        "look": by_label[name],
                        "step": True,
                        "x": figures([found[0], *found[places]], 1e3),
                        "y": figures([0.0, *share]),
                    }
                )
        if series:
            made.append(
                {
                    "title": title,
                    "height": 250,
                    "x": {
                        "label": f"{title} (ms)",
                        "log": _is_wide([v for one in series for v in one["x"]]),
                        "tight": True,
                    },
                    "y": {"label": "requests at or under (%)", "min": 0, "max": 100, "tight": True},
                    "series": series,
                }
            )
    return _panels(made, by_label)


def interactions(tables: Sequence[tuple[str, str, Metric, pd.DataFrame]]) -> Spec | None:
    """Lines of one knob over the values of another: parallel lines do not interact.

    Args:
        tables: (knob across, knob of the lines, metric, means with lines as rows and places as columns).
    """
    made: list[Spec] = []
    for across, lines, metric, means in tables:
        places = list(range(means.shape[1]))
        made.append(
            {
                "title": f"{lines} × {across}",
                "height": 240,
                "x": {"label": across, "cats": [format_value(value) for value in means.columns]},
                # Knobs multiply: where they do not interact, lines are parallel on a logarithmic axis.
                "y": {"label": metric.heading, "log": True},
                "series": [
                    {
                        "name": f"{lines}={format_value(row)}",
                        "look": i,
                        "mark": True,
                        "x": places,
                        "y": figures(values, metric.scale),
                    }
                    for i, (row, values) in enumerate(zip(means.index, means.to_numpy(dtype=float), strict=True))
                ],
            }
        )
    if not made:
        return None
    # Each panel has other lines, and so a legend of its own.
    for panel in made:
        panel["legend"] = [{"name": one["name"], "look": one["look"]} for one in panel["series"]]
    return {"kind": "panels", "least": 340, "legend": [], "panels": made}


def _panels(made: list[Spec], by_label: Looks) -> Spec | None:
    if not made:
        return None
    drawn = {one["name"] for panel in made for one in panel["series"]}
    legend = [{"name": name, "look": look} for name, look in by_label.items() if name in drawn]
    return {"kind": "panels", "legend": legend, "panels": made}


def _ends(rows: pd.DataFrame, metric: Metric, part: str) -> pd.Series:
    """The smallest or largest repeat; nothing for one repeat."""
    return rows[f"{metric.column}_{part}"].where(rows["num_repeats"] > 1)


def _is_wide(values: Sequence[float | None]) -> bool:
    found = [value for value in values if value is not None]
    return min(found) > 0 and max(found) > 10 * min(found)
