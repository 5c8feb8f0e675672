"""The page's panels drawn by matplotlib, from the same data: for files, and for the pictures of `report.md`.

A panel is what `panel.js` draws: a `title`, axes `x` and `y` (`label`, and `log`, `min`, `max`, `tight`, `cats`),
`series` (`name`, `look`, `x`, `y`, and `xlo`, `xhi`, `ylo`, `yhi`, `step`, `area`, `line`, `mark`, `label`, `dots`),
and plain `lines`. With `names`, each line ends in its name, to the right of the plot. On a logarithmic axis that has a
`min`, what lies below is drawn there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.style import COLOURS, DASHES, MARKERS, ink, place_labels, wrap

Spec = Mapping[str, Any]
GREY = "#9aa0a6"


def panel_figure(width: float, height: float) -> Figure:
    """An empty one, in inches; words stay words."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def panel_grid(rows: Sequence[Sequence[Spec]], legend: Sequence[Spec]) -> Figure:
    """Rows of panels under a legend, or, where each mark has its name beside it, without one."""
    across = max(map(len, rows))
    labelled = [bool(one.get("label")) for panels in rows for panel in panels for one in panel["series"]]
    if all(labelled):
        legend = ()
    has_names = any(panel.get("names") for panels in rows for panel in panels)
    # Names beside marks take room.
    wide, high = (2.6, 2.1) if not any(labelled) else (3.4, 3.0) if across > 1 else (6.8, 4.0)
    if has_names:
        wide, high = 4.2, 2.9
    elif any("cats" in panel["y"] for panels in rows for panel in panels):
        wide, high = 3.3, 2.5
    width = max(4.2, wide * across)
    longest = max((len(one["name"]) for one in legend), default=0)
    # Beside a few names there is room for few of a legend.
    columns = _num_columns(legend, int(width / (0.5 + 0.072 * longest)) if any(labelled) else across + 1)
    figure = panel_figure(width, high * len(rows) + 0.18 * math.ceil(len(legend) / columns))
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
    if any(labelled):
        figure.canvas.draw()
        figure.set_layout_engine("none")
        for axes, panels in zip(grid, rows, strict=True):
            for ax, panel in zip(axes, panels, strict=False):
                _name_marks(figure, ax, panel)
    return figure


def _name_marks(figure: Figure, ax: Axes, spec: Spec) -> None:
    marks, spreads, named = [], [], []
    obstacles = [np.stack([_shown(spec[name], one[name]) for name in "xy"], axis=1) for one in spec.get("lines", ())]
    for one in spec["series"]:
        if not one.get("mark") or one["x"][0] is None or one["y"][0] is None:
            continue
        x, y = (float(_shown(spec[name], one[name])[0]) for name in "xy")
        left, right, low, high = (_end(spec, one, name, end) for name in "xy" for end in ("lo", "hi"))
        if one.get("label"):
            marks.append((x, y))
            spreads.append((left, right, low, high))
            named.append(one)
        else:
            obstacles += [np.array([[left, y], [right, y]]), np.array([[x, low], [x, high]])]
    names, colours = [one["name"] for one in named], [colour_of(one) for one in named]
    place_labels(figure, ax, marks, spreads, names, colours, steps=obstacles)


def _end(spec: Spec, one: Spec, name: str, end: str) -> float:
    """Of a whisker, or the mark where there is none."""
    found = one.get(f"{name}{end}", [None])[0]
    return float(_shown(spec[name], one[name] if found is None else [found])[0])


def _shown(axis: Spec, values: Sequence[float | None]) -> np.ndarray:
    """Where values of an axis are drawn."""
    found = np.array(values, float)
    return np.fmax(found, axis["min"]) if axis.get("log") and "min" in axis else found


def _num_columns(legend: Sequence[Spec], most: int) -> int:
    longest = max((len(one["name"]) for one in legend), default=0)
    return max(1, min(len(legend), most, 2 if longest > 34 else most))


def _handles(legend: Sequence[Spec], *, has_marks: bool) -> list[Line2D]:
    return [
        Line2D([], [], color=colour_of(one), linestyle=dash_of(one), marker=marker_of(one) if has_marks else "", ms=4.5)
        for one in legend
    ]


def _panel(ax: Axes, spec: Spec) -> None:
    for one in spec["series"]:
        x, y = _shown(spec["x"], one["x"]), _shown(spec["y"], one["y"])
        colour = colour_of(one)
        step = "steps-post" if one.get("step") else "default"
        marker = marker_of(one) if one.get("mark") else ""
        dash = (0, (1.2, 1.6)) if one.get("dots") else dash_of(one)
        dash = dash if one.get("line", True) else ""
        ax.plot(x, y, color=colour, linestyle=dash, lw=1.2, marker=marker, ms=4, drawstyle=step)
        if one.get("area"):
            ax.fill_between(x, y, step="post" if one.get("step") else None, color=colour, alpha=0.22, lw=0)
        for low, high, draw, at, axis in (
            ("ylo", "yhi", ax.vlines, x, spec["y"]),
            ("xlo", "xhi", ax.hlines, y, spec["x"]),
        ):
            if low in one:
                ends = np.stack([_shown(axis, one[low]), _shown(axis, one[high])])
                known = np.isfinite(ends).all(axis=0) & np.isfinite(x) & np.isfinite(y)
                draw(at[known], *ends[:, known], color=colour, lw=0.9)
    for one in spec.get("lines", ()):
        line = (_shown(spec["x"], one["x"]), _shown(spec["y"], one["y"]))
        ax.plot(*line, color="#1a1a1a", lw=0.9, linestyle=(0, (4, 3)), alpha=0.6, zorder=1)
    for name, axis in (("x", spec["x"]), ("y", spec["y"])):
        drawn = [v for one in spec["series"] for v in _shown(axis, one[name]) if np.isfinite(v)]
        set_axis(ax, name, axis, drawn)
    if any(one.get("label") for one in spec["series"]):
        # Room for names on all sides.
        ax.margins(0.22, 0.16)
    if spec.get("legend"):
        # Room for the names of the lines.
        ax.set_ymargin(0.2)
        names = [one["name"] for one in spec["legend"]]
        ax.legend(_handles(spec["legend"], has_marks=True), names, loc="best", frameon=True, framealpha=0.8, fontsize=7)
    if spec.get("names"):
        _name_ends(ax, spec)
    ax.set_title(wrap(spec["title"], 36), loc="left", fontweight="bold", fontsize=8.5)


# Of the height of a plot, what a line of words takes.
_LINE = 0.052


def _name_ends(ax: Axes, spec: Spec) -> None:
    """Each name as near to the end of its line as the others let it be, in the order of the ends."""
    found = []
    for one in spec["series"]:
        x, y = _shown(spec["x"], one["x"]), _shown(spec["y"], one["y"])
        known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        if len(known):
            at = ax.transAxes.inverted().transform(ax.transData.transform((x[known[-1]], y[known[-1]])))
            found.append((float(np.clip(at[1], 0, 1)), float(at[0]), one))
    found.sort(key=lambda end: end[0])
    gap = min(_LINE, 1.06 / max(1, len(found) - 1))
    places: list[float] = []
    for up, _, _ in found:
        places.append(max(up, places[-1] + gap) if places else up)
    most = 1.03
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], most)
        most = places[i] - gap
    for (up, across, one), place in zip(found, places, strict=True):
        outside: dict[str, Any] = {"transform": ax.transAxes, "clip_on": False}
        ax.plot([across, 1.005, 1.04], [up, up, place], color=GREY, lw=0.5, zorder=0, **outside)
        ax.text(1.05, place, one["name"], color=ink(colour_of(one)), fontsize=7, va="center", **outside)


def set_axis(ax: Axes, name: str, spec: Spec, values: Sequence[float]) -> None:
    """Its label, scale, ticks and ends.

    Args:
        name: `x` or `y`.
        spec: the axis.
        values: what is drawn along it.
    """
    axis = ax.xaxis if name == "x" else ax.yaxis
    axis.set_label_text(spec["label"])
    if "cats" in spec:
        axis.set_ticks(range(len(spec["cats"])), spec["cats"])
        if name == "y":
            ax.set_ylim(-0.6, len(spec["cats"]) - 0.4)
        return
    if spec.get("log") and values and min(values) > 0:
        (ax.set_xscale if name == "x" else ax.set_yscale)("log")
        wide = max(values) > (500 if name == "y" else 100) * min(values)
        # Within a few times the same there is hardly a power of ten.
        near = max(values) < 5 * min(values)
        axis.set_major_locator(MaxNLocator(4) if near else LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    if spec.get("tight"):
        (ax.set_xmargin if name == "x" else ax.set_ymargin)(0)
    limits = {end: spec[key] for end, key in (("left", "min"), ("right", "max")) if key in spec}
    if name == "y":
        limits = {{"left": "bottom", "right": "top"}[end]: value for end, value in limits.items()}
    if spec.get("log") and "min" in spec:
        # A mark on the edge is cut in half.
        limits = {end: limit / 1.25 for end, limit in limits.items()}
    if limits:
        (ax.set_xlim if name == "x" else ax.set_ylim)(**limits)


def colour_of(one: Spec) -> str:
    """The colour of a series; grey where its look is -1."""
    return GREY if one["look"] < 0 else COLOURS[one["look"] % len(COLOURS)]


def dash_of(one: Spec) -> str | tuple[float, tuple[float, ...]]:
    """Of its line."""
    return "solid" if one["look"] < 0 else DASHES[(one["look"] // len(COLOURS)) % len(DASHES)]


def marker_of(one: Spec) -> str:
    """Of its marks."""
    return "o" if one["look"] < 0 else MARKERS[one["look"] % len(MARKERS)]
