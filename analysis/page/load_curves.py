"""Throughput and latency against load, where a sweep varied the load: request rate, or clients at a time."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.answer import load_knob
from analysis.columns import POINT_KEY
from analysis.load import Sweep
from analysis.metrics import METRICS, THROUGHPUT, Metric
from analysis.naming import axes, format_value, short_names
from analysis.page.series import figures
from analysis.style import MAX_POINTS
from analysis.summary import numbers

_LATENCIES = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "e2e_p99_s")


def load_curves(sweep: Sweep, points: pd.DataFrame) -> tuple[dict[str, Any], int] | None:
    """A line for each setting of the other knobs, and how many lines there was no room for."""
    knob = load_knob(sweep)
    if knob is None:
        return None
    columns = axes(sweep)
    others = [column for column in columns if column != knob]
    names = short_names(columns)
    firsts = sweep.runs.drop_duplicates(POINT_KEY).set_index(POINT_KEY)
    rows = points[points["num_repeats"] > 0].set_index(POINT_KEY)
    rows = rows.assign(
        load=numbers(firsts[knob]).reindex(rows.index),
        line=[", ".join(f"{names[c]}={format_value(firsts.at[key, c])}" for c in others) for key in rows.index],
    )
    lines = {str(name): group.sort_values("load") for name, group in rows.groupby("line", sort=False) if len(group) > 1}
    left_out = max(0, len(lines) - MAX_POINTS)
    lines = dict(list(lines.items())[:MAX_POINTS])
    by_column = {metric.column: metric for metric in METRICS}
    unit = "req/s" if knob.endswith("rps") else "clients"
    load = f"{names[knob].removesuffix('_rps').replace('_', ' ')} ({unit})"
    panels = []
    if any(group[THROUGHPUT.column].notna().any() for group in lines.values()):
        panels.append(_panel(lines, load, "load", THROUGHPUT))
        for column in _LATENCIES:
            if any(group[column].notna().any() for group in lines.values()):
                panels.append(
                    _panel(lines, f"output throughput ({THROUGHPUT.unit})", THROUGHPUT.column, by_column[column])
                )
    if not panels:
        return None
    legend = [{"name": name or "all", "look": i} for i, name in enumerate(lines)]
    return {"kind": "panels", "least": 330, "legend": legend, "panels": panels}, left_out


def _panel(lines: dict[str, pd.DataFrame], label: str, column: str, metric: Metric) -> dict[str, Any]:
    values = [v for group in lines.values() for v in group[metric.column].dropna()]
    series = []
    for i, (name, group) in enumerate(lines.items()):
        repeated = group["num_repeats"] > 1
        series.append(
            {
                "name": name or "all",
                "look": i,
                "mark": True,
                "x": figures(group[column]),
                "y": figures(group[metric.column], metric.scale),
                "ylo": figures(group[f"{metric.column}_min"].where(repeated), metric.scale),
                "yhi": figures(group[f"{metric.column}_max"].where(repeated), metric.scale),
            }
        )
    wide = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    up: dict[str, Any] = {"label": metric.heading, "log": True} if wide else {"label": metric.heading, "min": 0}
    return {"title": metric.title, "height": 250, "x": {"label": label, "min": 0}, "y": up, "series": series}
