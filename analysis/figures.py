"""`minivllm report FOLDER --figures DIR`: every plot of the page as an SVG for a paper.

From the same data as the page's, with its colours, dashes and marks. Words stay words, so that another program can set
them in its own font. The same tables give the same bytes.
"""

from __future__ import annotations

import html
import math
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.answer import Answer
from analysis.lane_figures import lane_figure
from analysis.load import Sweep
from analysis.page.forest import Forest, Row, domain, ratio_ticks
from analysis.page.plots import plots_of
from analysis.page.series import Spec
from analysis.panels import GREY, colour_of, marker_of, panel_figure, panel_grid, set_axis
from analysis.style import house_style, place_labels, wrap

_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "minivllm",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
}
_TONES = {"good": "#0072B2", "bad": "#C44E00", "flat": "#7a7f85"}
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
            drawn[name] = {"pareto": _pareto, "panels": _panels, "time": _timelines, "lanes": _lanes}[spec["kind"]](
                spec
            )
        for name, figure in drawn.items():
            made.append(folder / f"{name}.svg")
            figure.savefig(made[-1], format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    return made


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
    figure = panel_figure(width_pt / 72, float(heights.sum()) + 0.6)
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
    return panel_grid([spec["panels"][i : i + across] for i in range(0, len(spec["panels"]), across)], spec["legend"])


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
    return panel_grid(rows, spec["legend"])


def _lanes(spec: Spec) -> Figure:
    """The run that the page draws at first."""
    return lane_figure(spec["runs"][0])


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
    figure = panel_figure(6.8, 4.4)
    ax = figure.add_subplot()
    rest = [i for i in known if i not in named]
    ax.plot(x[rest], y[rest], "o", ms=3, color=GREY, zorder=1)
    ax.plot(x[front], y[front], color="#1a1a1a", lw=0.9, linestyle=(0, (4, 3)), alpha=0.6, zorder=1)
    marks, spreads, colours = [], [], []
    for i in named:
        look = {"look": max(0, spec["looks"][i])}
        ends = [(values["low"][i], values["high"][i], at) for values, at in ((across, x[i]), (up, y[i]))]
        (left, right), (low, high) = ((at, at) if lo is None else (lo, hi) for lo, hi, at in ends)
        ax.plot([left, right], [y[i]] * 2, color=colour_of(look), lw=0.9, zorder=2)
        ax.plot([x[i]] * 2, [low, high], color=colour_of(look), lw=0.9, zorder=2)
        ax.plot(x[i], y[i], marker_of(look), color=colour_of(look), ms=5.5, zorder=3)
        marks.append((x[i], y[i]))
        spreads.append((left, right, low, high))
        colours.append(colour_of(look))
    for name, values, metric in (("x", x[known], across), ("y", y[known], up)):
        is_wide = values.min() > 0 and values.max() > 10 * values.min()
        better = "higher is better" if metric["up"] else "lower is better"
        set_axis(ax, name, {"label": f"{metric['label']}, {better}", "log": is_wide}, list(values))
    ax.margins(0.15, 0.12)
    figure.canvas.draw()
    figure.set_layout_engine("none")
    place_labels(figure, ax, marks, spreads, [spec["points"][i] for i in named], colours)
    return figure


def _words(cell: str) -> str:
    """A cell of the page's table without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", cell))
