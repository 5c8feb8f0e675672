"""Which plots a page has, as data: the page draws them in a browser, `analysis.figures` into files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.answer import Answer
from analysis.baseline import knobs
from analysis.lanes import chosen_runs, lanes_spec
from analysis.load import Sweep
from analysis.metrics import METRICS
from analysis.page.forest import Forest
from analysis.page.load_curves import load_curves
from analysis.page.series import Spec, distributions, frontier, interactions
from analysis.page.timelines import remarks, timelines
from analysis.page.verdicts import effect_plots, verdict_plots
from analysis.plots import shown
from analysis.precision_plots import precision_specs
from analysis.speculation_plots import speculation_specs
from analysis.summary import measured_requests
from analysis.views import pivot

MAX_INTERACTION_PLOTS = 3
MAX_LEVELS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Plots:
    """All plots of a page; what there is nothing to draw of is not there.

    Args:
        forests: verdicts, each metric's own, and effects.
        specs: what the page's script draws, by name: `interactions`, `frontier`, `latency`, `load`, `time`,
            `lanes`, and those of precisions, of drafters and of policies.
        num_left_out: lines of `load` that there was no room for.
    """

    forests: tuple[Forest, ...]
    specs: dict[str, Spec]
    num_left_out: int


def plots_of(sweep: Sweep, points: pd.DataFrame, found: Answer) -> Plots:
    """Look for everything that can be drawn.

    Args:
        sweep: from `analysis.load`.
        points: from `analysis.points`.
        found: from `analysis.answer.answer`.
    """
    by_label = {label: i for i, label in enumerate(shown(points)["label"])}
    load = load_curves(sweep, points)
    specs = {
        "interactions": _interactions(sweep, found.changes),
        "frontier": frontier(points, METRICS, by_label),
        "latency": distributions(measured_requests(sweep), by_label),
        "load": load[0] if load else None,
        "time": timelines(sweep, points, found.metric),
        "lanes": lanes_spec(sweep, chosen_runs(points, found.scheduling, remarks(sweep, points, found.metric))),
    }
    if found.precisions is not None:
        specs |= precision_specs(sweep, found.precisions)
    if found.speculation is not None:
        specs |= speculation_specs(found.speculation)
    if found.scheduling is not None:
        specs |= found.scheduling.specs
    forests = [plot for one in found.verdicts for plot in verdict_plots(one)]
    return Plots(
        forests=(*forests, *effect_plots(found.changes, found.metric)),
        specs={name: spec for name, spec in specs.items() if spec},
        num_left_out=load[1] if load else 0,
    )


def _interactions(sweep: Sweep, changes: pd.DataFrame | None) -> Spec | None:
    """Of the pairs of knobs with the largest interactions."""
    if changes is None:
        return None
    pairs = changes[changes["kind"] == "interaction"]
    order = np.log(pairs["ratio"].astype(float)).abs().sort_values(ascending=False, kind="stable").index
    tables = []
    known = knobs(sweep)
    for one, two in dict.fromkeys(zip(pairs.loc[order, "knob"], pairs.loc[order, "knob2"], strict=True)):
        if one not in known or two not in known:
            continue
        means = pivot(sweep, rows=one, columns=two, metric=changes.attrs["metric"])
        # Numbers along the axis, names as lines; the longer one along the axis where both are alike.
        if _is_ordered(means.index) > _is_ordered(means.columns):
            means, one, two = means.T, two, one
        if max(means.shape) <= MAX_LEVELS and means.notna().any().any():
            metric = next(m for m in METRICS if m.column == changes.attrs["metric"])
            tables.append((two, one, metric, means))
        if len(tables) == MAX_INTERACTION_PLOTS:
            break
    return interactions(tables)


def _is_ordered(index: pd.Index) -> bool:
    return bool(pd.api.types.is_numeric_dtype(index.infer_objects()) and not pd.api.types.is_bool_dtype(index))
