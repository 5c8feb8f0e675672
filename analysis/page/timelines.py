"""How runs went: what the plots over time draw, and which points they draw before the reader chooses.

A run has thousands of steps and a sweep hundreds of points, so a line is thinned to what is left for it of a budget
for the whole page, and a point's lines share their places in time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.caveats import contamination, saturation
from analysis.columns import OK, POINT_KEY, RUN_KEY
from analysis.direction import direction_of
from analysis.load import Sweep
from analysis.metrics import THROUGHPUT, Metric
from analysis.naming import attach
from analysis.page.series import MAX_PLACES, Spec, figures
from analysis.summary import numbers
from analysis.words import many

# Before the reader chooses, and on paper.
MAX_DRAWN = 6
# To choose from: beyond it a list is no list, and the page grows by 10 kB a point.
MAX_CHOICE = 300
# Figures of all lines together, of about six characters each.
_BUDGET = 300_000
_FEWEST_PLACES = 60


def timelines(sweep: Sweep, points: pd.DataFrame, metric: Metric = THROUGHPUT) -> Spec | None:
    """KV use, requests running and waiting, tokens a step and memory, over the first finished run of each point.

    Args:
        sweep: from `analysis.load`.
        points: from `analysis.points`.
        metric: that says which points are best and worst.

    Returns:
        Points to choose from, those drawn at first with `on`; None where no run recorded its steps.
    """
    steps = _steps(sweep)
    notes = remarks(sweep, points, metric)
    order = points.loc[points["num_repeats"] > 0, "label"].tolist()
    # Those that are worth a look are kept, whatever else there is room for.
    kept = {*notes, *order[: max(0, MAX_CHOICE - len(notes))]}
    rows_of = {str(name): rows for name, rows in steps.groupby("label", sort=False)}
    runs = {name: rows_of[name] for name in order if name in kept and _is_timed(rows_of.get(name))}
    lines = {name: _lines(rows) for name, rows in runs.items()}
    lines = {name: kinds for name, kinds in lines.items() if kinds}
    if not lines:
        return None
    num_lines = sum(1 + sum(len(series) for _, series in kinds) for kinds in lines.values())
    places = int(np.clip(_BUDGET // num_lines, _FEWEST_PLACES, MAX_PLACES))
    drawn = [name for name in notes if name in lines][:MAX_DRAWN]
    # A sweep of few points is drawn whole.
    if len(lines) <= MAX_DRAWN:
        drawn = list(lines)
    made = [
        {"name": name, "note": notes.get(name, ""), "on": name in drawn, **_thinned(runs[name], kinds, places)}
        for name, kinds in lines.items()
    ]
    looks = {one["name"]: one["look"] for point in made for panel in point["panels"] for one in panel["series"]}
    legend = [{"name": name, "look": look} for name, look in looks.items()]
    return {"kind": "time", "least": 250, "legend": legend, "points": made, "num_steps": max(map(len, runs.values()))}


def remarks(sweep: Sweep, points: pd.DataFrame, metric: Metric = THROUGHPUT) -> dict[str, str]:
    """The points that are worth a look, the first ones most, and why: a baseline, the best, the worst, and each of
    which something speaks against believing its figures."""
    finished = points[points["num_repeats"] > 0]
    said: dict[str, list[str]] = {}

    def say(labels: Sequence[str], what: str) -> None:
        for label in labels:
            said.setdefault(label, []).append(what)

    bases = finished.loc[finished["is_baseline"], "label"].tolist()
    say(bases[:1], "baseline")
    values = numbers(finished[metric.column]) if metric.column in finished else pd.Series(dtype=float)
    up = direction_of(metric.column).higher_is_better
    if up is not None and values.nunique() > 1:
        best, worst = (values.idxmax(), values.idxmin()) if up else (values.idxmin(), values.idxmax())
        say([finished.at[best, "label"]], f"best {metric.title}")
        say([finished.at[worst, "label"]], f"worst {metric.title}")
    for label, left, failed in zip(finished["label"], finished["num_repeats"], finished["num_failed"], strict=True):
        if failed:
            say([label], f"{failed} of {many(left + failed, 'repeat')} failed")
    keys = {(sweep_name, point): label for sweep_name, point, label in finished[[*POINT_KEY, "label"]].to_numpy()}
    for check, what in ((saturation, "saturated"), (contamination, "contaminated")):
        say([keys[key] for key in _points_that(check, sweep) if key in keys], what)
    say(bases[1:], "baseline")
    return {label: ", ".join(words) for label, words in said.items()}


def _points_that(check: Callable[[Sweep], list[str]], sweep: Sweep) -> list[tuple[str, str]]:
    """The points of which a caveat is true by themselves; they are looked at only where it is true of the sweep."""
    if not check(sweep):
        return []
    runs = sweep.runs.drop_duplicates(RUN_KEY)
    requests = sweep.requests.merge(runs[[*RUN_KEY, "point_id"]], on=RUN_KEY)
    of_point = {key: rows.drop(columns="point_id") for key, rows in requests.groupby(POINT_KEY, sort=False)}
    return [
        (str(key[0]), str(key[1]))
        for key, own in runs.groupby(POINT_KEY, sort=False)
        if key in of_point and check(replace(sweep, runs=own, requests=of_point[key]))
    ]


def _steps(sweep: Sweep) -> pd.DataFrame:
    """Of the first finished run of each point, in their order, without the warm-up's."""
    runs = sweep.runs[sweep.runs["status"] == OK].drop_duplicates(POINT_KEY)
    steps = attach(sweep, sweep.steps.merge(runs[RUN_KEY], on=RUN_KEY), ["kv_blocks_total"])
    return steps[~(numbers(steps["start_s"]) < 0)].sort_values("step", kind="stable")


def _is_timed(rows: pd.DataFrame | None) -> bool:
    return rows is not None and len(rows) > 1 and bool(numbers(rows["start_s"]).notna().any())


_Kind = tuple[str, list[tuple[str, pd.Series, Spec]]]


def _lines(rows: pd.DataFrame) -> list[_Kind]:
    """What there is to draw of a run: the label of an upward axis, and its lines with their looks."""
    column = {name: numbers(rows[name]) for name in _COLUMNS}
    total = column["kv_blocks_total"]
    kinds: list[_Kind] = [
        (
            "KV blocks (% of pool)",
            [
                ("used", 100 * column["kv_blocks_used"] / total, {"look": 0, "area": True}),
                ("cached for reuse", 100 * column["kv_blocks_cached"] / total, {"look": 4, "dots": True}),
                # Of the pool too: slots that are held and hold nothing.
                (
                    "held, but empty",
                    100 * column["kv_fragmentation_fraction"] * column["kv_blocks_used"] / total,
                    {"look": 6},
                ),
            ],
        ),
        (
            "requests",
            [
                ("running", column["num_running"], {"look": 2, "area": True}),
                ("waiting", column["num_waiting"], {"look": 1}),
            ],
        ),
        (
            "tokens a step",
            [
                ("prefill", column["num_prefill_tokens"], {"look": 5, "area": True}),
                ("decode", column["num_decode_tokens"], {"look": 3}),
            ],
        ),
        # Looked at every few steps only.
        ("memory (MB)", [("process", column["process_bytes"].ffill() / 2**20, {"look": 7})]),
    ]
    known = [(label, [part for part in parts if part[1].notna().any()]) for label, parts in kinds]
    return [(label, parts) for label, parts in known if parts]


def _thinned(rows: pd.DataFrame, kinds: Sequence[_Kind], places: int) -> Spec:
    """The largest value of each stretch of time: a peak is what one looks for, and a mean would hide it."""
    time_s = numbers(rows["start_s"]).to_numpy()
    starts = np.unique(np.linspace(0, len(rows), min(places, len(rows)), endpoint=False).astype(int))
    return {
        "x": figures((time_s - np.nanmin(time_s))[starts]),
        "panels": [
            {
                "label": label,
                "series": [
                    {"name": name, "y": figures(np.fmax.reduceat(values.to_numpy(), starts)), **look}
                    for name, values, look in parts
                ],
            }
            for label, parts in kinds
        ],
    }


_COLUMNS = (
    "kv_blocks_total",
    "kv_blocks_used",
    "kv_blocks_cached",
    "num_running",
    "num_waiting",
    "num_prefill_tokens",
    "num_decode_tokens",
    "kv_fragmentation_fraction",
    "process_bytes",
)
