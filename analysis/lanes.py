"""One run, request by request: lanes of waiting, prefill, decode and waits after preemptions, in the order of arrival,
over the K/V pool and the requests that run and wait.

Of many requests a window is shown: the worst one, by end-to-end latency, and those that arrived around it, most of them
after it, for they are who may have overtaken it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.baseline import PointKey
from analysis.columns import OK, POINT_KEY, RUN_KEY
from analysis.load import Sweep
from analysis.machine_caveats import column_of
from analysis.naming import labels
from analysis.scheduling_answer import Scheduling
from analysis.schedulings import at_chosen, load_text
from analysis.summary import numbers

Spec = dict[str, Any]
# More lanes are thinner than a line.
MAX_LANES = 160
# To choose from on a page: more is hundreds of kilobytes.
MAX_RUNS = 16
# Of a window, the share of lanes that arrived before the worst request.
_BEFORE = 0.25
_PLACES = 240
# What a lane is made of, in the order in which they are painted, with their looks.
KINDS = (("waiting", 7), ("prefill", 4), ("decode", 0), ("preempted", 1))
_INSTANTS = ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s")


def timeline(sweep: Sweep, point: str | None = None, *, repeat: int | None = None, lanes: int = MAX_LANES) -> Spec:
    """One run, as the page and `analysis.lane_figures` draw it.

    Args:
        sweep: from `analysis.load`.
        point: its label, as `analysis.labels` has them, or its id; the first that finished where None.
        repeat: of it; the first that finished where None.
        lanes: at most, around the worst request.

    Returns:
        `name`, `note`, `kinds` with their looks; `lanes`, each with the request's `id` and its `parts`, lists of
        [kind, from, until] in seconds; `worst`, the place of the worst lane; `from` and `until` of the window; and
        `panels` of K/V use and of requests running and waiting, lines over the same time.

    Raises:
        ValueError: no such point or repeat, or one without the instants of its requests.
    """
    names = labels(sweep)
    runs = sweep.runs[sweep.runs["status"] == OK]
    keys = pd.MultiIndex.from_frame(runs[POINT_KEY])
    if point is not None:
        runs = runs[(names.reindex(keys) == point).to_numpy() | (runs["point_id"] == point).to_numpy()]
    if repeat is not None:
        runs = runs[runs["repeat"] == repeat]
    if runs.empty:
        raise ValueError(f"point={point}, repeat={repeat}: no such run finished; points are {'; '.join(names[:12])}")
    made = run_spec(sweep, runs.iloc[0], lanes)
    if made is None:
        raise ValueError(f"point={point}: its requests have no instants; the table requests must have {_INSTANTS}")
    return made | {"name": names[(runs.iloc[0]["sweep"], runs.iloc[0]["point_id"])]}


def run_spec(sweep: Sweep, run: pd.Series, lanes: int = MAX_LANES) -> Spec | None:
    """What `timeline` returns, under the name of the run; None where requests have no instants.

    Args:
        sweep: from `analysis.load`.
        run: a row of `runs`.
        lanes: at most.
    """
    requests = _of_run(sweep.requests, run)
    requests = requests[~requests["warmup"].eq(True)]
    times = pd.DataFrame({name: numbers(column_of(requests, name)) for name in _INSTANTS}, index=requests.index)
    known = times["arrival_s"].notna() & times["finish_s"].notna() & times["first_scheduled_s"].notna()
    times = times[known].sort_values("arrival_s", kind="stable")
    if times.empty:
        return None
    requests = requests.loc[times.index]
    first, last, worst = _window((times["finish_s"] - times["arrival_s"]).to_numpy(), lanes)
    shown = times.iloc[first:last]
    # The worst one may outlive all others by far: it runs off the edge then.
    others = shown["finish_s"].drop(shown.index[worst - first]) if len(shown) > 1 else shown["finish_s"]
    start, end = float(shown["arrival_s"].min()), float(max(others.max(), shown["first_scheduled_s"].max()))
    if len(shown) == len(times):
        end = float(shown["finish_s"].max())
    end = end if end > start else start + 1e-3
    gaps = [_preemptions(requests.loc[place]) for place in shown.index]
    made = [
        {"id": str(requests.at[place, "request_id"]), "parts": _parts(row, own, start, end)}
        for (place, row), own in zip(shown.iterrows(), gaps, strict=True)
    ]
    note = f"repeat {run['repeat']:g}, {len(times):,} requests"
    if len(shown) < len(times):
        note += f"; shown are {len(shown)} around the worst, request {made[worst - first]['id']}"
    return {
        "name": str(run["run_id"]),
        "note": note,
        "kinds": [{"name": name, "look": look} for name, look in KINDS],
        "lanes": made,
        "worst": worst - first,
        "from": _round(start),
        "until": _round(end),
        "panels": _panels(_of_run(sweep.steps, run), run, start, end),
    }


def _of_run(table: pd.DataFrame, run: pd.Series) -> pd.DataFrame:
    return table[(table["run_id"] == run["run_id"]) & (table["sweep"] == run["sweep"])]


def _window(latency_s: np.ndarray, lanes: int) -> tuple[int, int, int]:
    """First and last place of the lanes shown, the end left out, and that of the worst request."""
    worst = int(latency_s.argmax())
    first = max(0, min(worst - int(_BEFORE * lanes), len(latency_s) - lanes))
    return first, min(len(latency_s), first + lanes), worst


def _preemptions(request: pd.Series) -> list[tuple[float, float]]:
    """Waits after preemptions; none where the table does not tell."""
    ends = [request.get(f"preempted_{name}_s") for name in ("from", "until")]
    if not all(isinstance(one, (list, tuple, np.ndarray)) for one in ends):
        return []
    # A request that was ended while it waited was never taken up again.
    return [(float(low), float(high)) for low, high in zip(*ends, strict=False)]


def _parts(row: pd.Series, gaps: Sequence[tuple[float, float]], start: float, end: float) -> list[list[float]]:
    """[kind, from, until] within the window; no two overlap."""
    arrival, scheduled, finish = (float(row[name]) for name in ("arrival_s", "first_scheduled_s", "finish_s"))
    token = float(row["first_token_s"])
    token = finish if math.isnan(token) else token
    parts = [(0, arrival, scheduled)]
    for kind, low, high in ((1, scheduled, token), (2, token, finish)):
        at = low
        for gap_low, gap_high in gaps:
            if gap_low < high and gap_high > at:
                parts += [(kind, at, max(at, gap_low)), (3, max(at, gap_low), min(high, gap_high))]
                at = min(high, gap_high)
        parts.append((kind, at, high))
    cut = [(kind, max(low, start), min(high, end)) for kind, low, high in parts]
    return [[kind, _round(low), _round(high)] for kind, low, high in cut if high > low]


def _panels(steps: pd.DataFrame, run: pd.Series, start: float, end: float) -> list[Spec]:
    """Lines over the window, the largest value of each stretch of it."""
    steps = steps.assign(start_s=numbers(column_of(steps, "start_s"))).sort_values("start_s", kind="stable")
    # The step that was under way when the window begins.
    inside = steps[steps["start_s"].le(end)]
    before = inside["start_s"].lt(start).sum()
    inside = inside.iloc[max(0, int(before) - 1) :]
    if len(inside) < 2:
        return []
    starts = np.unique(np.linspace(0, len(inside), min(_PLACES, len(inside)), endpoint=False).astype(int))
    at = [_round(max(start, value)) for value in inside["start_s"].to_numpy()[starts]] + [_round(end)]
    total = float(numbers(pd.Series([run.get("kv_blocks_total")])).iloc[0])
    kinds = (
        ("KV (% of pool)", (("KV used", 100 * numbers(column_of(inside, "kv_blocks_used")) / total, 2),)),
        (
            "requests",
            (
                ("running", numbers(column_of(inside, "num_running")), 0),
                ("in queue", numbers(column_of(inside, "num_waiting")), 7),
            ),
        ),
    )
    made = []
    for label, lines in kinds:
        series = []
        for place, (name, values, look) in enumerate(lines):
            if values.notna().any():
                peaks = np.fmax.reduceat(values.to_numpy(dtype=float), starts)
                y = [None if math.isnan(value) else float(f"{value:.4g}") for value in [*peaks, peaks[-1]]]
                series.append({"name": name, "look": look, "area": place == 0, "step": True, "x": at, "y": y})
        if series:
            made.append({"label": label, "series": series})
    return made


def _round(value: float) -> float:
    """To a tenth of a millisecond: a lane is hundreds of pixels long."""
    return round(float(value), 4)


Chosen = tuple[PointKey, str, str]


def chosen_runs(
    points: pd.DataFrame, policies: Scheduling | None, notes: Mapping[str, str] | None = None
) -> list[Chosen]:
    """The points of which a run is drawn: of policies those under the chosen load of the first setting, else the
    baseline, the best, the worst and the doubtful.

    Args:
        points: from `analysis.points`.
        policies: of the sweep.
        notes: from `analysis.page.timelines.remarks`; the baseline alone where None.

    Returns:
        (sweep, point_id), name and remark of each.
    """
    finished = points[points["num_repeats"] > 0].set_index(POINT_KEY)
    if policies is not None and len(policies.frame):
        setting, load, rows = at_chosen(policies.frame)[0]
        at = ", ".join(part for part in (setting, load_text(policies.frame, load)) if part)
        keys = [(str(row["sweep"]), str(row["point_id"])) for _, row in rows.iterrows()]
        named = zip(keys, rows["policy"], strict=True)
        return [(key, str(policy), at) for key, policy in named if key in finished.index][:MAX_RUNS]
    if notes is None:
        first = finished.sort_values("is_baseline", ascending=False, kind="stable").head(1)
        return [(key, str(row["label"]), "") for key, row in first.iterrows()]
    keys_of = {label: key for key, label in finished["label"].items()}
    return [(keys_of[label], label, note) for label, note in notes.items() if label in keys_of][:MAX_RUNS]


def lanes_spec(sweep: Sweep, keys: Sequence[Chosen]) -> Spec | None:
    """What the page draws: one run at a time, of these points.

    Args:
        sweep: from `analysis.load`.
        keys: from `chosen_runs`, the first one drawn at first.
    """
    runs = sweep.runs[sweep.runs["status"] == OK].drop_duplicates(POINT_KEY).set_index(POINT_KEY, drop=False)
    # Looked up run by run, tables of many runs are read many times.
    wanted = runs.loc[[key for key, _, _ in keys if key in runs.index], RUN_KEY].reset_index(drop=True)
    few = Sweep(
        folders=sweep.folders,
        runs=sweep.runs,
        requests=sweep.requests.merge(wanted, on=RUN_KEY),
        steps=sweep.steps.merge(wanted, on=RUN_KEY),
        quality=sweep.quality[:0],
        configs={},
        warnings=(),
    )
    made = []
    for key, name, remark in keys:
        one = run_spec(few, runs.loc[key]) if key in runs.index else None
        if one is not None:
            note = "; ".join(part for part in (remark, one["note"]) if part)
            made.append(one | {"name": name, "note": note})
    return {"kind": "lanes", "runs": made} if made else None
