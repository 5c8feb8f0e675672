"""A timeline of one run as a figure, for paper: what `analysis.timeline` found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator

from analysis.panels import colour_of, panel_figure
from analysis.style import DPI, house_style

_RC = {"svg.fonttype": "none", "svg.hashsalt": "minivllm"}
# Waiting of either kind is drawn thinner than work.
_THIN = (0, 3)
_MOST_NAMES = 24


def lane_figure(spec: Mapping[str, Any]) -> Figure:
    """Lanes above, K/V use and requests below, over one time axis.

    Args:
        spec: from `analysis.timeline`.
    """
    count, panels = len(spec["lanes"]), spec["panels"]
    high = float(np.clip(0.13 * count, 1.2, 5.0))
    figure = panel_figure(7.2, high + 1.0 * len(panels) + 0.9)
    axes = figure.subplots(
        1 + len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": [high, *[1.0] * len(panels)]}
    )[:, 0]
    _lanes(axes[0], spec)
    for ax, panel in zip(axes[1:], panels, strict=True):
        for one in panel["series"]:
            colour = colour_of(one)
            y = np.array(one["y"], dtype=float)
            ax.step(one["x"], y, where="post", color=colour, lw=1.1, label=one["name"])
            if one["area"]:
                ax.fill_between(one["x"], y, step="post", color=colour, alpha=0.22, lw=0)
        ax.set_ylim(0, max(1.0, ax.get_ylim()[1]))
        ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        ax.set_ylabel(panel["label"])
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), borderaxespad=0.2, handlelength=1.2)
    axes[0].set_xlim(spec["from"], spec["until"])
    axes[-1].set_xlabel("time since the start of the measurement (s)")
    handles = [Patch(color=colour_of(kind), label=kind["name"]) for kind in spec["kinds"]]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.2)
    axes[0].set_title(f"{spec['name']}\n{spec['note']}", loc="left", fontsize=8)
    return figure


def _lanes(ax: Axes, spec: Mapping[str, Any]) -> None:
    lanes = spec["lanes"]
    for place, kind in enumerate(spec["kinds"]):
        half = 0.28 if place in _THIN else 0.42
        boxes = [
            [(low, i - half), (high, i - half), (high, i + half), (low, i + half)]
            for i, lane in enumerate(lanes)
            for own, low, high in lane["parts"]
            if own == place
        ]
        if boxes:
            ax.add_collection(PolyCollection(boxes, facecolors=colour_of(kind), edgecolors="none"))
    ax.set_ylim(len(lanes) - 0.4, -0.6)
    step = max(1, -(-len(lanes) // _MOST_NAMES))
    at = range(0, len(lanes), step)
    ax.yaxis.set_major_locator(FixedLocator(list(at)))
    ax.set_yticklabels([lanes[i]["id"] for i in at], fontsize=6.5)
    ax.grid(axis="y", visible=False)
    ax.set_ylabel("request, by arrival")
    ax.annotate(
        "worst",
        (1, spec["worst"]),
        (5, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        annotation_clip=False,
    )


def write_timeline(spec: Mapping[str, Any], path: str | Path) -> Path:
    """Draw it into a file, an SVG or a PNG by its ending; the same spec gives the same bytes.

    Args:
        spec: from `analysis.timeline`.
        path: in a folder that exists.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"path={path}: must end in .svg or .png")
    with house_style(), matplotlib.rc_context(_RC):
        options: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": DPI}
        lane_figure(spec).savefig(path, facecolor="white", **options)
    return path
