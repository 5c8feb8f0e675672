"""`minivllm report FOLDER --figures DIR`: every plot of the page as an SVG for a paper.

From the same data as the page's, with its colours, dashes and marks. Words stay words, so that another program can set
them in its own font. The same tables give the same bytes.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.answer import Answer
from analysis.load import Sweep
from analysis.page.forest import Forest, Row, domain, ratio_ticks
from analysis.page.plots import plots_of
from analysis.page.series import Spec
from analysis.style import COLOURS, DASHES, MARKERS, house_style, place_labels, wrap

_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "minivllm",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
}
_TONES = {"good": "#0072B2", "bad": "#C44E00", "flat": "#7a7f85"}
_GREY = "#9aa0a6"
_LABEL_WIDTH = 44


def write_figures(sweep: Sweep, points: pd.DataFrame, found: Answer, folder: Path) -> list[Path]:
    """Draw all that the page draws; over a run, the points that it draws at first.

    Args:
        sweep: from `analysis.load`.
        points: from `analysis.points`.
        found: from `analysis.answer.answer`.
        folder: for the SVG files; made where missing. What else lies there stays.

    Returns:
        The files, named as the page names what it saves.
    """
    plots = plots_of(sweep, points, found)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with house_style(), matplotlib.rc_context(_RC):
        drawn = {plot.name: _forest(plot) for plot in plots.forests}
        for name, spec in plots.specs.items():
            drawn[name] = {"pareto": _pareto, "panels": _panels, "time": _timelines}[spec["kind"]](spec)
        for name, figure in drawn.items():
            made.append(folder / f"{name}.svg")
            figure.savefig(made[-1], format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    return made


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _forest(plot: Forest) -> Figure:
    """Labels, ratios on a logarithmic axis, and to their right the figures and verdicts of the table."""
    labels = [wrap(_words(row.cells[0]), _LABEL_WIDTH) for row in plot.rows]
    heights = 0.1 + 0.13 * np.array([text.count("\n") + 1 for text in labels])
    centres = np.cumsum(heights) - heights / 2
    heads = [text.split("\n")[0] for text in plot.head[1:]]
    columns = [[_words(row.cells[place + 1]) for row in plot.rows] for place in range(len(heads))]
    if plot.is_judged:
        heads.append("verdict")
        columns.append([row.verdict for row in plot.rows])
    widths_pt = [4.6 * max(map(len, (head, *texts))) for head, texts in zip(heads, columns, strict=True)]
    longest = max(len(line) for text in labels for line in text.splitlines())
    # The plot itself is as wide whatever stands beside it.
    width_pt = 250 + 4.9 * longest + sum(widths_pt) + 10 * len(widths_pt)
    figure = _figure(width_pt / 72, float(heights.sum()) + 0.6)
    ax = figure.add_subplot()
    ax.set_xscale("log")
    for width, colour in ((plot.band, "#eef0f2"), (plot.floor, "#f3e3b8")):
        if width > 0:
            ax.axvspan(1 / (1 + width), 1 + width, color=colour, lw=0, zorder=0)
    ax.axvline(1, color="#5a5f66", lw=0.8, linestyle=(0, (4, 3)), zorder=1)
    for centre, row in zip(centres, plot.rows, strict=True):
        _mark(ax, row, float(centre))
    left, right = domain(plot.rows)
    ax.set_xlim(left, right)
    ax.set_ylim(float(heights.sum()), 0)
    ax.xaxis.set_major_locator(FixedLocator(ratio_ticks(left, right)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yticks(centres, labels)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    for tick, row in zip(ax.get_yticklabels(), plot.rows, strict=True):
        tick.set_fontweight("bold" if row.base else "normal")
    ax.set_xlabel(f"{plot.title}: ratio to the {plot.reference}, with its 95 % interval")
    away = 0.0
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7.5, "annotation_clip": False}
    for head, texts, width in zip(heads, columns, widths_pt, strict=True):
        # Words to the left, figures to the right.
        side, at = ("left", away + 10) if head == "verdict" else ("right", away + 10 + width)
        ax.annotate(head, (1, 1), (at, 6), xycoords="axes fraction", color="#5a5f66", ha=side, **style)
        for centre, row, text in zip(centres, plot.rows, texts, strict=True):
            colour = _TONES[row.tone] if head == "verdict" else "#1a1a1a"
            where = ("axes fraction", "data")
            ax.annotate(text, (1, centre), (at, 0), xycoords=where, color=colour, ha=side, **style)
        away += width + 10
    return figure


def _mark(ax: Axes, row: Row, y: float) -> None:
    if row.base or math.isnan(row.ratio) or row.ratio <= 0:
        if row.base:
            ax.plot(1, y, "o", color="#1a1a1a", ms=4.5)
        return
    colour = _TONES[row.tone]
    ax.barh(y, row.ratio - 1, left=1, height=0.09, color=colour, alpha=0.32, zorder=2)
    if not math.isnan(row.low):
        low, high = max(row.low, 1e-300), min(row.high, 1e300)
        ax.errorbar(row.ratio, y, xerr=[[row.ratio - low], [high - row.ratio]], color=colour, elinewidth=1.1, capsize=2)
    ax.plot(row.ratio, y, "o", color=colour, ms=4.5, zorder=4)


def _panels(spec: Spec) -> Figure:
    across = min(3, len(spec["panels"]))
    return _grid([spec["panels"][i : i + across] for i in range(0, len(spec["panels"]), across)], spec["legend"])


def _timelines(spec: Spec) -> Figure:
    """A row a point."""
    rows = []
    for point in spec["points"]:
        if point["on"]:
            rows.append(
                [
                    {
                        "title": point["name"] if place == 0 else "",
                        "x": {"label": "time since the first step (s)", "min": 0, "tight": True},
                        "y": {"label": panel["label"], "min": 0},
                        "series": [{**one, "x": point["x"], "step": True} for one in panel["series"]],
                    }
                    for place, panel in enumerate(point["panels"])
                ]
            )
    return _grid(rows, spec["legend"])


def _grid(rows: Sequence[Sequence[Spec]], legend: Sequence[Spec]) -> Figure:
    across = max(map(len, rows))
    columns = _num_columns(legend, across + 1)
    figure = _figure(max(4.2, 2.6 * across), 2.1 * len(rows) + 0.18 * math.ceil(len(legend) / columns))
    grid = figure.subplots(len(rows), across, squeeze=False)
    for axes, panels in zip(grid, rows, strict=True):
        for ax, panel in zip(axes, panels, strict=False):
            _panel(ax, panel)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
    if len(legend) > 1:
        has_marks = any(one.get("mark") for panels in rows for panel in panels for one in panel["series"])
        handles = _handles(legend, has_marks=has_marks)
        figure.legend(handles, [one["name"] for one in legend], loc="outside upper left", ncols=columns)
    return figure


def _num_columns(legend: Sequence[Spec], most: int) -> int:
    longest = max((len(one["name"]) for one in legend), default=0)
    return max(1, min(len(legend), 2 if longest > 34 else most))


def _handles(legend: Sequence[Spec], *, has_marks: bool) -> list[Line2D]:
    return [
        Line2D([], [], color=_colour(one), linestyle=_dash(one), marker=_marker(one) if has_marks else "", ms=4.5)
        for one in legend
    ]


def _panel(ax: Axes, spec: Spec) -> None:
    for one in spec["series"]:
        x, y = np.array(one["x"], float), np.array(one["y"], float)
        colour = _colour(one)
        step = "steps-post" if one.get("step") else "default"
        marker = _marker(one) if one.get("mark") else ""
        dash = (0, (1.2, 1.6)) if one.get("dots") else _dash(one)
        ax.plot(x, y, color=colour, linestyle=dash, lw=1.2, marker=marker, ms=4, drawstyle=step)
        if one.get("area"):
            ax.fill_between(x, y, step="post" if one.get("step") else None, color=colour, alpha=0.22, lw=0)
        if "ylo" in one:
            ends = np.array([one["ylo"], one["yhi"]], float)
            known = np.isfinite(ends).all(axis=0) & np.isfinite(y)
            ax.vlines(x[known], *ends[:, known], color=colour, lw=0.9)
    for name, axis in (("x", spec["x"]), ("y", spec["y"])):
        _axis(ax, name, axis, [v for one in spec["series"] for v in one[name] if v is not None])
    if spec.get("legend"):
        # Room for the names of the lines.
        ax.set_ymargin(0.2)
        names = [one["name"] for one in spec["legend"]]
        ax.legend(_handles(spec["legend"], has_marks=True), names, loc="best", frameon=True, framealpha=0.8, fontsize=7)
    ax.set_title(spec["title"], loc="left", fontweight="bold", fontsize=8.5)


def _axis(ax: Axes, name: str, spec: Spec, values: Sequence[float]) -> None:
    axis = ax.xaxis if name == "x" else ax.yaxis
    axis.set_label_text(spec["label"])
    if "cats" in spec:
        axis.set_ticks(range(len(spec["cats"])), spec["cats"])
        return
    if spec.get("log") and values and min(values) > 0:
        (ax.set_xscale if name == "x" else ax.set_yscale)("log")
        wide = max(values) > 500 * min(values)
        axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    if spec.get("tight"):
        (ax.set_xmargin if name == "x" else ax.set_ymargin)(0)
    limits = {end: spec[key] for end, key in (("left", "min"), ("right", "max")) if key in spec}
    if name == "y":
        limits = {{"left": "bottom", "right": "top"}[end]: value for end, value in limits.items()}
    if limits:
        (ax.set_xlim if name == "x" else ax.set_ylim)(**limits)


def _pareto(spec: Spec) -> Figure:
    """The two metrics that the page pairs at first. Of many points, the frontier's and the baseline have names."""
    across, up = spec["metrics"][spec["x"]], spec["metrics"][spec["y"]]
    x, y = np.array(across["mean"], float), np.array(up["mean"], float)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    sign_x, sign_y = (1 if metric["up"] else -1 for metric in (across, up))
    front = [
        i
        for i in known
        if not any(
            sign_x * (x[j] - x[i]) >= 0 and sign_y * (y[j] - y[i]) >= 0 and (x[j] != x[i] or y[j] != y[i])
            for j in known
        )
    ]
    front.sort(key=lambda i: x[i])
    named = [i for i in known if len(known) <= 12 or i in front or spec["base"][i]]
    figure = _figure(6.8, 4.4)
    ax = figure.add_subplot()
    rest = [i for i in known if i not in named]
    ax.plot(x[rest], y[rest], "o", ms=3, color=_GREY, zorder=1)
    ax.plot(x[front], y[front], color="#1a1a1a", lw=0.9, linestyle=(0, (4, 3)), alpha=0.6, zorder=1)
    marks, spreads, colours = [], [], []
    for i in named:
        look = {"look": max(0, spec["looks"][i])}
        ends = [(values["low"][i], values["high"][i], at) for values, at in ((across, x[i]), (up, y[i]))]
        (left, right), (low, high) = ((at, at) if lo is None else (lo, hi) for lo, hi, at in ends)
        ax.plot([left, right], [y[i]] * 2, color=_colour(look), lw=0.9, zorder=2)
        ax.plot([x[i]] * 2, [low, high], color=_colour(look), lw=0.9, zorder=2)
        ax.plot(x[i], y[i], _marker(look), color=_colour(look), ms=5.5, zorder=3)
        marks.append((x[i], y[i]))
        spreads.append((left, right, low, high))
        colours.append(_colour(look))
    for name, values, metric in (("x", x[known], across), ("y", y[known], up)):
        is_wide = values.min() > 0 and values.max() > 10 * values.min()
        better = "higher is better" if metric["up"] else "lower is better"
        _axis(ax, name, {"label": f"{metric['label']}, {better}", "log": is_wide}, list(values))
    ax.margins(0.15, 0.12)
    figure.canvas.draw()
    figure.set_layout_engine("none")
    place_labels(figure, ax, marks, spreads, [spec["points"][i] for i in named], colours)
    return figure


def _colour(one: Spec) -> str:
    return _GREY if one["look"] < 0 else COLOURS[one["look"] % len(COLOURS)]


def _dash(one: Spec) -> str | tuple[float, tuple[float, ...]]:
    return "solid" if one["look"] < 0 else DASHES[(one["look"] // len(COLOURS)) % len(DASHES)]


def _marker(one: Spec) -> str:
    return "o" if one["look"] < 0 else MARKERS[one["look"] % len(MARKERS)]


def _words(cell: str) -> str:
    """A cell of the page's table without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", cell))
