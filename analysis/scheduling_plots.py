"""What the plots of policies draw, as plain data in the form of `panel.js` and `analysis.panels`.

Each policy has one look in all of them. Lines against load end in their names; what is compared under one load is a
row of marks, a policy a line, best on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import POINT_KEY
from analysis.direction import direction_of
from analysis.metrics import Metric
from analysis.scheduling_fidelity import COMPARED
from analysis.scheduling_metrics import ATTAINMENT, FAIRNESS_METRICS, GOODPUT, LATENCY_METRICS
from analysis.schedulings import at_chosen, load_text
from analysis.summary import numbers

Spec = dict[str, Any]
# More there is no room for.
MAX_POLICIES = 16
MAX_SETTINGS = 4
_PLACES = 160
_CDFS = (("ttft_s", "TTFT"), ("e2e_s", "E2E"), ("itl_max_s", "Longest ITL"))
_BETTER = {True: "higher is better", False: "lower is better"}
CAPTIONS = {
    "scheduling-ttft": "Time to first token against load; whiskers are 95 % intervals over repeats.",
    "scheduling-itl": "Gaps between tokens against load: long prefills and preemptions show in the p99.",
    "scheduling-e2e": "End-to-end latency against load.",
    "scheduling-normalized": "End-to-end latency over output tokens, against load.",
    "scheduling-goodput": "What met the SLO, against load; along the dashed line all that was offered does.",
    "scheduling-cdf": "All requests of all repeats under one load: a curve further left is faster, and where it bends "
    "late is the tail.",
    "scheduling-fairness": "Under the same load: fairness between clients, and what preemptions cost. Marks are means, "
    "whiskers 95 % intervals over repeats.",
    "scheduling-clients": "The 90th percentile of TTFT of each client, all repeats together: the mark is the median "
    "client, and the line reaches from the best-served to the worst-served.",
    "scheduling-capacity": "The highest rate within the SLO; the line ends at the lowest rate that was seen to fail.",
    "scheduling-fidelity": "Simulated against real, a mark a policy and load: on the dashed line both are the same; "
    "the outer two are as far off as is tolerated.",
}


def scheduling_specs(
    frame: pd.DataFrame,
    requests: pd.DataFrame,
    clients: pd.DataFrame,
    capacities: pd.DataFrame,
    errors: pd.DataFrame,
) -> dict[str, Spec]:
    """Of each plot that has something to show its name and what it draws.

    Args:
        frame: from `analysis.scheduling`.
        requests: from `analysis.summary.measured_requests`.
        clients: from `analysis.scheduling_clients.client_tails`.
        capacities: from `analysis.capacity`.
        errors: from `analysis.fidelity`.
    """
    looks = looks_of(frame)
    shown = frame[frame["policy"].isin(looks)]
    shown.attrs = frame.attrs
    made: dict[str, list[Spec]] = {}
    for name, pair in zip(("ttft", "itl", "e2e", "normalized"), LATENCY_METRICS, strict=True):
        made[f"scheduling-{name}"] = _against_load(shown, pair, looks)
    made["scheduling-goodput"] = _against_load(shown, (GOODPUT, ATTAINMENT), looks)
    made["scheduling-cdf"] = _distributions(shown, requests, looks)
    made["scheduling-fairness"] = _fairness(shown, looks)
    made["scheduling-clients"] = _clients(shown, clients, looks)
    made["scheduling-capacity"] = _capacities(capacities, looks)
    made["scheduling-fidelity"] = _fidelity(errors, looks)
    return {
        name: {"kind": "panels", "least": 400, "legend": _legend(panels, looks), "panels": panels}
        for name, panels in made.items()
        if panels
    }


def figures(values: Sequence[float] | np.ndarray | pd.Series, scale: float = 1.0) -> list[float | None]:
    """JSON knows no NaN, and five digits are more than a plot shows."""
    found = np.asarray(values, dtype=float) * scale
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in found]


def looks_of(frame: pd.DataFrame) -> dict[str, int]:
    """A look a policy, in the order in which they ran."""
    return {str(policy): look for look, policy in enumerate(frame.attrs["policies"][:MAX_POLICIES])}


def _legend(panels: Sequence[Spec], looks: dict[str, int]) -> list[Spec]:
    """Where names stand in the plot a legend says them twice."""
    if all(panel.get("names") or "cats" in panel["y"] for panel in panels):
        return []
    drawn = {one["name"] for panel in panels for one in panel["series"]}
    return [{"name": name, "look": look} for name, look in looks.items() if name in drawn]


def _settings(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), group) for name, group in frame.groupby("setting", sort=False)][:MAX_SETTINGS]


def _is_wide(values: Sequence[float | None] | np.ndarray, factor: float = 10) -> bool:
    found = [value for value in values if value is not None and math.isfinite(value)]
    return bool(len(found) > 1 and min(found) > 0 and max(found) > factor * min(found))


def _better(metric: Metric) -> str:
    up = direction_of(metric.column).higher_is_better
    return f"{metric.heading}, {_BETTER[up]}" if up is not None else metric.heading


def _titled(setting: str, title: str) -> str:
    return f"{title}: {setting}" if setting else title


def _against_load(frame: pd.DataFrame, metrics: Sequence[Metric], looks: dict[str, int]) -> list[Spec]:
    """A panel a setting and metric; none where the load was the same."""
    made = []
    for setting, group in _settings(frame):
        loads = group["load"].dropna().unique()
        for metric in metrics:
            if len(loads) < 2 or metric.column not in group or group[metric.column].notna().sum() < 2:
                continue
            series = []
            for policy, own in group.dropna(subset=["load"]).groupby("policy", sort=False):
                own = own.sort_values("load").drop_duplicates("load")
                whisker = {
                    key: figures(np.maximum(0, own[f"{metric.column}_{end}"].to_numpy(dtype=float)), metric.scale)
                    for key, end in (("ylo", "low"), ("yhi", "high"))
                }
                y = figures(own[metric.column], metric.scale)
                if any(value is not None for value in y):
                    one = {"name": policy, "look": looks[str(policy)], "mark": True}
                    series.append({**one, "x": figures(own["load"]), "y": y, **whisker})
            values = [value for one in series for value in one["y"]]
            wide = _is_wide(values)
            panel: Spec = {
                "title": _titled(setting, metric.title),
                "height": 330,
                "names": True,
                "x": {"label": frame.attrs["load_name"], "log": _is_wide(loads, 7.9)},
                "y": {"label": _better(metric), "log": True} if wide else {"label": _better(metric), "min": 0},
                "series": series,
            }
            _bound(panel)
            if metric is GOODPUT and frame.attrs["is_rate"] and not wide:
                top = max((value for value in values if value is not None), default=0.0)
                ends = [float(min(loads)), float(min(max(loads), 1.15 * top))]
                if ends[1] > ends[0]:
                    panel["lines"] = [{"x": ends, "y": ends}]
            made.append(panel)
    return made


def _bound(panel: Spec) -> None:
    """Of few repeats an interval may be so wide that it presses all else together: it ends at the edge then."""
    values = np.array([v for one in panel["series"] for v in one["y"] if v is not None])
    if panel["y"].get("log"):
        low, high = values.min() / 1.6, values.max() * 1.6
    else:
        low, high = 0.0, 1.1 * values.max()
    for one in panel["series"]:
        for end in ("ylo", "yhi"):
            one[end] = [None if v is None else float(f"{min(high, max(low, v)):.5g}") for v in one[end]]


def _distributions(frame: pd.DataFrame, requests: pd.DataFrame, looks: dict[str, int]) -> list[Spec]:
    made = []
    wanted = {setting for setting, _ in _settings(frame)}
    for setting, load, rows in at_chosen(frame):
        if setting not in wanted:
            continue
        keys = rows[[*POINT_KEY, "policy"]]
        own = requests.merge(keys, on=POINT_KEY, how="inner")
        for column, title in _CDFS:
            series = []
            for policy in rows["policy"]:
                found = own.loc[own["policy"] == policy, column] if column in own else pd.Series(dtype=float)
                values = np.sort(numbers(found).dropna().to_numpy())
                if len(values):
                    # The tail is what schedulers differ in: places are dense there.
                    even = np.linspace(0, len(values) - 1, _PLACES)
                    tail = len(values) - np.geomspace(1, len(values), _PLACES // 2)
                    places = np.unique(np.concatenate([even, tail]).round().astype(int))
                    share = 100 * (places + 1) / len(values)
                    one = {"name": policy, "look": looks[policy], "step": True}
                    x = figures([values[0], *values[places]], 1e3)
                    series.append({**one, "x": x, "y": figures([0.0, *share])})
            if series:
                wide = _is_wide([value for one in series for value in one["x"]])
                at = load_text(frame, load)
                made.append(
                    {
                        "title": _titled(", ".join(part for part in (setting, at) if part), title),
                        "height": 270,
                        "x": {"label": f"{title} (ms), further left is better", "log": wide, "tight": True},
                        "y": {"label": "requests at or under (%)", "min": 0, "max": 100, "tight": True},
                        "series": series,
                    }
                )
    return made


def _dots(title: str, label: str, rows: Sequence[tuple[str, int, float, float, float]]) -> Spec:
    """A mark a policy, the first on top.

    Args:
        rows: name, look, value, and the ends of its whisker.
    """
    names = [name for name, *_ in rows][::-1]
    series = [
        {
            "name": name,
            "look": look,
            "mark": True,
            "line": False,
            "x": figures([value]),
            "y": [names.index(name)],
            "xlo": figures([low]),
            "xhi": figures([high]),
        }
        for name, look, value, low, high in rows
    ]
    found = [v for _, _, *values in rows for v in values if math.isfinite(v)]
    across = {"log": True} if _is_wide(found, 30) else {"min": 0}
    return {
        "title": title,
        "height": 70 + 19 * len(rows),
        "x": {"label": label, **across},
        "y": {"label": "", "cats": names},
        "series": series,
    }


def _fairness(frame: pd.DataFrame, looks: dict[str, int]) -> list[Spec]:
    made = []
    for setting, load, rows in at_chosen(frame)[:MAX_SETTINGS]:
        for metric in FAIRNESS_METRICS:
            known = rows.dropna(subset=[metric.column]) if metric.column in rows else rows[:0]
            # Where nothing differs there is nothing to see.
            if len(known) < 2 or known[metric.column].nunique() < 2:
                continue
            up = bool(direction_of(metric.column).higher_is_better)
            known = known.sort_values(metric.column, ascending=not up, kind="stable")
            columns = [metric.column, f"{metric.column}_low", f"{metric.column}_high"]
            values = (known[columns].clip(lower=0) * metric.scale).to_numpy(dtype=float)
            at = ", ".join(part for part in (setting, load_text(frame, load)) if part)
            found = [(str(p), looks[str(p)], *ends) for p, ends in zip(known["policy"], values, strict=True)]
            made.append(_dots(_titled(at, metric.title), _better(metric), found))
    return made


def _clients(frame: pd.DataFrame, clients: pd.DataFrame, looks: dict[str, int]) -> list[Spec]:
    made = []
    for setting, load, rows in at_chosen(frame)[:MAX_SETTINGS] if len(clients) else ():
        known = rows.merge(clients, on=POINT_KEY).sort_values("worst", kind="stable")
        if len(known) > 1:
            found = [
                (str(r["policy"]), looks[str(r["policy"])], *(1e3 * r[c] for c in ("median", "best", "worst")))
                for _, r in known.iterrows()
            ]
            at = ", ".join(part for part in (setting, load_text(frame, load)) if part)
            made.append(_dots(_titled(at, "TTFT p90 by client"), "TTFT p90 (ms), lower is better", found))
    return made


def _capacities(capacities: pd.DataFrame, looks: dict[str, int]) -> list[Spec]:
    known = capacities.dropna(subset=["capacity_rps"])[: 2 * MAX_POLICIES] if len(capacities) else capacities
    if len(known) < 2:
        return []
    names = [str(label).removeprefix("scheduler=") for label in known["label"]]
    columns = known[["capacity_rps", "over_rps"]].to_numpy(dtype=float)
    rows = [
        (name, _look_of(name, looks), rate, rate, over if math.isfinite(over) else rate)
        for name, (rate, over) in zip(names, columns, strict=True)
    ]
    return [_dots("Capacity", "rate (req/s), higher is better", rows)]


def _look_of(label: str, looks: dict[str, int]) -> int:
    """That of its policy; grey where the label is of something else."""
    return next((looks[part] for part in [label, *label.split(", ")] if part in looks), -1)


def _fidelity(errors: pd.DataFrame, looks: dict[str, int]) -> list[Spec]:
    made = []
    for column, group in errors.groupby("metric", sort=False):
        known = group[group["real"].gt(0) & group["simulated"].gt(0) & group["policy"].isin(looks)]
        if len(known) < 2:
            continue
        metric = next(one for one in COMPARED if one.column == column)
        tolerance = float(known["tolerance"].iloc[0])
        both = known[["real", "simulated"]] * metric.scale
        ends = [float(both.min().min()) / 1.2, float(both.max().max()) * 1.2]
        series = [
            {
                "name": policy,
                "look": looks[str(policy)],
                "mark": True,
                "line": False,
                "x": figures(own["real"], metric.scale),
                "y": figures(own["simulated"], metric.scale),
            }
            for policy, own in known.groupby("policy", sort=False)
        ]
        made.append(
            {
                "title": metric.title,
                "height": 280,
                "x": {"label": f"real ({metric.unit})", "log": True},
                "y": {"label": f"simulated ({metric.unit})", "log": True},
                "series": series,
                "lines": [{"x": ends, "y": [by * end for end in ends]} for by in (1, 1 - tolerance, 1 + tolerance)],
            }
        )
    return made
