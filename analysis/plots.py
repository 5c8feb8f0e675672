"""The pictures of a report, each a function from a sweep and its points to a PNG.

A plot that has nothing to show is not written, and its function returns None; one point alone is nothing to compare.
Lines and labels are for at most a dozen points, the baseline and the fastest; bars are for all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.columns import OK, RUN_KEY
from analysis.lane_figures import lane_figure
from analysis.lanes import chosen_runs, lanes_spec
from analysis.load import Sweep
from analysis.metrics import THROUGHPUT, TTFT_P50
from analysis.naming import attach
from analysis.panels import panel_grid
from analysis.precision_plots import MEASURES, precision_specs
from analysis.precisions import precision
from analysis.quality_figures import has_quality
from analysis.scheduling_answer import Scheduling
from analysis.scheduling_pictures import PICTURES, scheduling_picture
from analysis.speculation_plots import speculation_specs
from analysis.speculation_rows import has_speculation
from analysis.speculations import speculation
from analysis.style import DPI, MAX_POINTS, Look, house_style, log_axis, looks, place_labels, wrap
from analysis.summary import measured_requests, numbers

_X, _Y = TTFT_P50, THROUGHPUT


def write_plots(
    sweep: Sweep, points: pd.DataFrame, folder: Path, policies: Scheduling | None = None
) -> dict[str, Path]:
    """Draw all that can be drawn.

    Args:
        sweep: from `analysis.load`.
        points: from `analysis.points`.
        folder: for the PNG files; made where missing. Pictures of an earlier report are replaced or removed.
        policies: from `analysis.scheduling_answer.scheduling_answer`, where there are any.

    Returns:
        The name of each plot drawn, and its file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    by_label = looks(points["label"].tolist())
    drawn: dict[str, Callable[[], Figure | None]] = {
        **{name: functools.partial(scheduling_picture, policies, name) for name in PICTURES},
        **{name: functools.partial(draw, sweep, points, by_label) for name, draw in PLOTS.items()},
        "lanes": lambda: _lanes(sweep, points, policies),
    }
    for name, draw in drawn.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        with house_style():
            figure = draw()
            if figure is not None:
                figure.savefig(path, dpi=DPI, facecolor="white")
                made[name] = path
    return made


def shown(points: pd.DataFrame) -> pd.DataFrame:
    """The points that a plot with labels has room for: the baseline and the fastest, in their order."""
    finished = points[points["num_repeats"] > 0]
    first = finished.sort_values(["is_baseline", _Y.column], ascending=False, kind="stable").head(MAX_POINTS)
    return finished.loc[sorted(first.index)]


def throughput_against_ttft(sweep: Sweep, points: pd.DataFrame, by_label: dict[str, Look]) -> Figure | None:
    """A mark a point, whiskers from the smallest to the largest repeat. Up and to the left is better."""
    rows = shown(points).dropna(subset=[_X.column, _Y.column])
    if len(rows) < 2:
        return None
    figure = _figure(6.8, 4.6)
    ax = figure.add_subplot()
    marks, spreads, colours = [], [], []
    for _, row in rows.iterrows():
        look = by_label[row["label"]]
        x, y = row[_X.column] * _X.scale, row[_Y.column] * _Y.scale
        across, up = _whisker(row, _X.column, _X.scale), _whisker(row, _Y.column, _Y.scale)
        ax.errorbar(x, y, up, across, fmt=look.marker, ms=6, color=look.colour, elinewidth=0.9, capsize=2, zorder=3)
        marks.append((x, y))
        spreads.append((x - across[0][0], x + across[1][0], y - up[0][0], y + up[1][0]))
        colours.append(look.colour)
    log_axis(ax, [x for x, _ in marks])
    # Room on all sides for the labels.
    ax.margins(0.2, 0.14)
    ax.set_ylim(bottom=max(0.0, ax.get_ylim()[0]))
    ax.set_xlabel(f"{_X.title} (ms), lower is better")
    ax.set_ylabel(f"{_Y.title} throughput (tok/s), higher is better")
    figure.canvas.draw()
    figure.set_layout_engine("none")
    place_labels(figure, ax, marks, spreads, rows["label"].tolist(), colours)
    return figure


def latency_distributions(sweep: Sweep, points: pd.DataFrame, by_label: dict[str, Look]) -> Figure | None:
    """Empirical distributions of TTFT, TPOT and E2E over the measured requests of all repeats."""
    requests = measured_requests(sweep)
    names = shown(points)["label"].tolist()
    groups = dict(list(requests[requests["label"].isin(names)].groupby("label", sort=False)))
    panels = []
    for column, title in (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "E2E")):
        values = {name: np.sort(numbers(groups[name][column]).dropna()) for name in names if name in groups}
        values = {name: found * 1e3 for name, found in values.items() if len(found)}
        if values:
            panels.append((title, values))
    if not panels:
        return None
    drawn = [name for name in names if any(name in values for _, values in panels)]
    columns = min(len(drawn), 2 if max(map(len, drawn)) > 34 else 3)
    legend_rows = math.ceil(len(drawn) / columns)
    figure = _figure(3.2 * len(panels) + 0.4, 2.9 + 0.17 * legend_rows)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, values) in zip(axes, panels, strict=True):
        for name, found in values.items():
            look = by_label[name]
            share = np.arange(1, len(found) + 1) / len(found)
            ax.step(found, share, where="post", color=look.colour, linestyle=look.dash, lw=1.3)
        log_axis(ax, np.concatenate(list(values.values())))
        ax.set_xlabel(f"{title} (ms)")
        ax.set_ylim(0, 1.01)
    axes[0].set_ylabel("Share of requests at or under")
    handles = [Line2D([], [], color=by_label[n].colour, linestyle=by_label[n].dash, lw=1.6, label=n) for n in drawn]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def kv_use(sweep: Sweep, points: pd.DataFrame, by_label: dict[str, Look]) -> Figure | None:
    """Used and cached blocks as shares of the pool over time; one run, the first that finished, a point."""
    runs = sweep.runs[sweep.runs["status"] == OK].drop_duplicates(["sweep", "point_id"])
    steps = attach(sweep, sweep.steps.merge(runs[RUN_KEY], on=RUN_KEY), ["kv_blocks_total"])
    panels = []
    for name in shown(points)["label"].head(8):
        rows = steps[steps["label"] == name].sort_values("step", kind="stable")
        # Times count from the start of the measurement; before it is the warm-up.
        rows = rows[~(numbers(rows["start_s"]) < 0)]
        total = numbers(rows["kv_blocks_total"])
        start = numbers(rows["start_s"])
        used, cached = (numbers(rows[column]) / total for column in ("kv_blocks_used", "kv_blocks_cached"))
        if len(rows) and used.notna().any() and start.notna().any():
            panels.append((name, start - start.min(), used, cached))
    if not panels:
        return None
    across = min(4, len(panels)) if len(panels) != 5 else 3
    down = math.ceil(len(panels) / across)
    figure = _figure(max(2.35 * across, 4.2), 1.75 * down + 0.65)
    # One time axis for all, unless it would squeeze the shortest run into a corner.
    ends = [float(time_s.max()) for _, time_s, _, _ in panels]
    together = max(ends) <= 4 * min(ends)
    grid = figure.subplots(down, across, sharex=together, sharey=True, squeeze=False)
    for ax, (name, time_s, used, cached) in zip(grid.flat, panels, strict=False):
        colour = by_label[name].colour
        ax.fill_between(time_s, 100 * used, step="post", color=colour, alpha=0.35, lw=0)
        ax.step(time_s, 100 * used, where="post", color=colour, lw=1.0)
        ax.step(time_s, 100 * cached, where="post", color="#444444", lw=0.9, linestyle=(0, (1.5, 1)))
        ax.set_title(wrap(name, 30), loc="left", fontsize=8)
        ax.set_ylim(0, 100)
        ax.set_xlim(0, max(ends) if together else float(time_s.max()))
    for ax in grid.flat[len(panels) :]:
        ax.set_visible(False)
    figure.supxlabel("Time since the first step (s)", fontsize=9)
    figure.supylabel("KV blocks (% of the pool)", fontsize=9)
    handles = [
        Line2D([], [], color="#777777", lw=5, alpha=0.5, label="used by requests"),
        Line2D([], [], color="#444444", lw=1, linestyle=(0, (1.5, 1)), label="cached for reuse"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure


def output_throughput(sweep: Sweep, points: pd.DataFrame, by_label: dict[str, Look]) -> Figure | None:
    """A bar a point, fastest first, whiskers from the smallest to the largest repeat, speed-up at the end."""
    rows = points.dropna(subset=[_Y.column]).sort_values(_Y.column, kind="stable")
    if len(rows) < 2:
        return None
    texts = [wrap(label, 36) for label in rows["label"]]
    heights = 0.16 + 0.14 * np.array([text.count("\n") + 1 for text in texts])
    figure = _figure(6.8, max(1.7, 0.8 + float(heights.sum())))
    ax = figure.add_subplot()
    centres = np.cumsum(heights) - heights / 2
    for centre, (_, row) in zip(centres, rows.iterrows(), strict=True):
        colour = by_label[row["label"]].colour
        value = row[_Y.column]
        ax.barh(centre, value, height=0.2, color=colour, alpha=0.85)
        if row["num_repeats"] > 1:
            # Light under dark, so that whiskers show on any bar.
            for line, width in (("white", 2.6), ("#333333", 1.0)):
                spread = _whisker(row, _Y.column, 1.0)
                ax.errorbar(value, centre, xerr=spread, fmt="none", ecolor=line, elinewidth=width, capsize=2.5)
        end = np.nanmax([value, row[f"{_Y.column}_max"]])
        note = f"{_Y.text(value)}"
        if row["is_baseline"]:
            note += "  baseline"
        elif pd.notna(row["speedup"]):
            note += f"  {row['speedup']:.2f}×"
        words: dict[str, Any] = {
            "va": "center",
            "fontsize": 8,
            "fontweight": "bold" if row["is_baseline"] else "normal",
        }
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        ax.annotate(note, (end, centre), (6, 0), textcoords="offset points", bbox=paper, **words)
    ax.set_yticks(centres, texts)
    for tick, baseline in zip(ax.get_yticklabels(), rows["is_baseline"], strict=True):
        tick.set_fontweight("bold" if baseline else "normal")
    ax.set_ylim(0, float(heights.sum()))
    ax.set_xlim(0, float(np.nanmax(rows[[_Y.column, f"{_Y.column}_max"]].to_numpy())) * 1.32)
    for value in rows.loc[rows["is_baseline"], _Y.column]:
        ax.axvline(value, color="#333333", lw=0.8, linestyle=(0, (4, 3)), zorder=0.5)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("Output throughput (tok/s)")
    return figure


def quality_against_speed(sweep: Sweep, points: pd.DataFrame, by_label: dict[str, Look]) -> Figure | None:
    """A mark a precision, a panel a batch size: perplexity above, divergence below, as far as they were measured."""
    if not has_quality(sweep):
        return None
    specs = precision_specs(sweep, precision(sweep))
    drawn = [specs[name] for name in MEASURES if name in specs]
    rows = [one["panels"][start : start + 3] for one in drawn for start in range(0, len(one["panels"]), 3)]
    return panel_grid(rows, drawn[0]["legend"]) if rows else None


def speculation_plots(sweep: Sweep, points: pd.DataFrame, by_label: dict[str, Look]) -> Figure | None:
    """A row each: acceptance by position, speed-up against the batch size, predictions; a column a workload."""
    if not has_speculation(sweep):
        return None
    specs = speculation_specs(speculation(sweep))
    rows = [one["panels"][start : start + 3] for one in specs.values() for start in range(0, len(one["panels"]), 3)]
    legend = {one["name"]: one for spec in specs.values() for one in spec["legend"]}
    return panel_grid(rows, list(legend.values())) if rows else None


PLOTS: dict[str, Callable[[Sweep, pd.DataFrame, dict[str, Look]], Figure | None]] = {
    "speculation": speculation_plots,
    "quality_against_speed": quality_against_speed,
    "output_throughput": output_throughput,
    "throughput_against_ttft": throughput_against_ttft,
    "latency_distributions": latency_distributions,
    "kv_use": kv_use,
}


def _lanes(sweep: Sweep, points: pd.DataFrame, policies: Scheduling | None) -> Figure | None:
    """One run, request by request: the first policy, or the baseline."""
    spec = lanes_spec(sweep, chosen_runs(points, policies)[:1])
    return lane_figure(spec["runs"][0]) if spec else None


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _whisker(row: pd.Series, column: str, scale: float) -> list[list[float]]:
    """How far down to the smallest and up to the largest repeat; nothing for one repeat."""
    if row["num_repeats"] < 2 or pd.isna(row[f"{column}_min"]):
        return [[0.0], [0.0]]
    value = row[column]
    return [[max(0.0, value - row[f"{column}_min"]) * scale], [max(0.0, row[f"{column}_max"] - value) * scale]]
