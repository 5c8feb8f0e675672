"""Which points of a sweep are policies, under which load, in which setting.

A policy is what was varied of the scheduler and its parts: order, victims, preemption, length prediction. The load is
the rate of arrivals, or clients at a time. A setting is all else that was varied: the workload, the model, the cache.
Real and simulated points of one policy, setting and load differ in nothing but `simulated`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.baseline import PointKey
from analysis.columns import POINT_KEY
from analysis.load import Sweep
from analysis.machine_caveats import column_of
from analysis.naming import VARIANT, axes, codes, determines, format_value, label_of, short_names, varying
from analysis.summary import numbers

_POLICY = re.compile(r"^cfg\.(scheduler|victim|preemption|length_predictor)(\.|$)")
# In the order in which they are looked for; the last means fewer clients the smaller it is.
_LOADS = (r"\.(request_rate_rps|rate_rps)$", r"\.(rate_scale|load_scale)$", r"\.concurrency$")
_LOAD = re.compile("|".join(_LOADS))
# What makes a run simulated, or what it is then a model of.
_LIFE = re.compile(r"^cfg\.(execution|step_time|hardware)(\.|$)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One point.

    Args:
        key: of the point.
        policy: a short name, the same in all plots.
        setting: all that was varied beside policy and load, as a label; empty where nothing was.
        load: None where none was varied.
        simulated: None where results do not say.
        rest: the setting without whether it is simulated: what real and simulated points have in common.
    """

    key: PointKey
    policy: str
    setting: str
    load: float | None
    simulated: bool | None
    rest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """All points that can be compared with another, in the order in which they first ran.

    Args:
        rows: of them.
        load_name: for people, with its unit; empty where no load was varied.
        is_rate: whether the load is in requests a second.
    """

    rows: tuple[Row, ...]
    load_name: str = ""
    is_rate: bool = False


def has_scheduling(sweep: Sweep) -> bool:
    """Whether the scheduler, one of its parts, or the rate of arrivals was varied. An ablation, of which the scheduler
    is one part among others, compares no policies."""
    columns = varying(sweep)
    return _has_policies(sweep, columns) or any(re.search(_LOADS[0], column) for column in columns)


def _has_policies(sweep: Sweep, columns: Sequence[str]) -> bool:
    if not any(_POLICY.match(column) for column in columns):
        return False
    if VARIANT not in columns:
        return True
    if names_settings(sweep, columns):
        return True
    variant = codes(sweep.runs[VARIANT])
    others = [c for c in columns if c != VARIANT and not (_POLICY.match(c) or _LOAD.search(c) or _LIFE.match(c))]
    return not any(determines(variant, codes(sweep.runs[column])) for column in others)


def rows_of(sweep: Sweep) -> Rows:
    """Find them."""
    if not has_scheduling(sweep):
        return Rows(rows=())
    points = sweep.runs.drop_duplicates(POINT_KEY).set_index(POINT_KEY, drop=False)
    columns, kept = varying(sweep), axes(sweep)
    names = short_names(kept)
    load = load_column(sweep, columns)
    simulated = column_of(points, "simulated").map(lambda value: None if pd.isna(value) else bool(value))
    both = simulated.dropna().nunique() > 1
    life = _followers(points, columns, simulated) if both else set()
    # A variant is a name for what it sets.
    has_policies = _has_policies(sweep, columns)
    is_policy = not names_settings(sweep, columns)
    own = [c for c in kept if has_policies and (_POLICY.match(c) or (c == VARIANT and is_policy))]
    led = {c for c in columns if c == load or c in life}
    led |= set(own)
    held = [c for c in columns if c not in led and not (has_policies and _POLICY.match(c))]
    shared = [VARIANT] if names_settings(sweep, columns) else [c for c in kept if c not in led]
    # A simulation may lie in a folder of its own.
    several = points["sweep"].nunique() > 1 and not both
    contexts = {
        key: (key[0] if several else "", *(format_value(row[c]) for c in held)) for key, row in points.iterrows()
    }
    settings = _settings(points, contexts, shared, held, names)
    loads = pd.Series(float("nan"), index=points.index) if load is None else numbers(points[load])
    made = []
    for key, row in points.iterrows():
        rest, is_simulated = settings[key], simulated[key]
        life_name = "simulated" if is_simulated else "real"
        made.append(
            Row(
                key=key,
                policy=_policy(row, own, names),
                setting=", ".join(part for part in (rest, life_name) if part) if both else rest,
                load=None if pd.isna(loads[key]) else float(loads[key]),
                simulated=is_simulated,
                rest=rest,
            )
        )
    # A point without another of its setting is compared with nothing.
    counts = Counter(row.rest for row in made)
    name, is_rate = _load_name(load, names)
    return Rows(rows=tuple(row for row in made if counts[row.rest] > 1), load_name=name, is_rate=is_rate)


def load_column(sweep: Sweep, columns: Sequence[str] | None = None) -> str | None:
    """The column of `runs` that says how much load there was, if it was varied."""
    columns = varying(sweep) if columns is None else columns
    # A rate that goes with a kind of traffic is no load that was varied.
    settings = codes(sweep.runs[VARIANT]) if names_settings(sweep, columns) else None
    for pattern in _LOADS:
        for column in columns:
            if not re.search(pattern, column) or numbers(sweep.runs[column]).dropna().nunique() <= 1:
                continue
            if settings is None or not determines(settings, codes(sweep.runs[column])):
                return column
    return None


def names_settings(sweep: Sweep, columns: Sequence[str]) -> bool:
    """Whether variants are kinds of traffic, under each of which policies were varied: they are names of settings."""
    if VARIANT not in columns:
        return False
    variant = codes(sweep.runs[VARIANT])
    policies = [column for column in columns if _POLICY.match(column)]
    return bool(policies) and not any(determines(variant, codes(sweep.runs[column])) for column in policies)


def _load_name(load: str | None, names: dict[str, str]) -> tuple[str, bool]:
    if load is None:
        return "", False
    name = names.get(load, load).rpartition(".")[2]
    if name.endswith("_rps"):
        return f"{name.removesuffix('_rps').replace('_', ' ')} (req/s)", True
    return f"{name.replace('_', ' ')} ({'clients' if name == 'concurrency' else '×'})", False


def _followers(points: pd.DataFrame, columns: Sequence[str], simulated: pd.Series) -> set[str]:
    """Columns that say no more than whether a point is simulated, and those of the simulation itself."""
    known = codes(simulated)
    return {c for c in columns if _LIFE.match(c) or determines(known, codes(points[c]))}


def _settings(
    points: pd.DataFrame,
    contexts: dict[PointKey, tuple[str, ...]],
    shared: Sequence[str],
    held: Sequence[str],
    names: dict[str, str],
) -> dict[PointKey, str]:
    """A label a point; the same only where all that is held is the same."""
    first: dict[tuple[str, ...], PointKey] = {}
    for key, context in contexts.items():
        first.setdefault(context, key)

    def label(context: tuple[str, ...], columns: Sequence[str], short: dict[str, str]) -> str:
        text = label_of(points.loc[first[context]], columns, short, with_nulls=True)
        return f"{context[0]}: {text}".removesuffix(": ") if context[0] else text

    made = {context: label(context, shared, names) for context in first}
    twice = {text for text, count in Counter(made.values()).items() if count > 1}
    for context in first:
        if made[context] in twice:
            made[context] = label(context, held, short_names(held))
    return {key: made[context] for key, context in contexts.items()}


def _policy(row: pd.Series, own: Sequence[str], names: dict[str, str]) -> str:
    """`srpt`, `srpt, victim=newest`: the scheduler without its key."""
    label = label_of(row, own, names, with_nulls=False)
    return label.removeprefix("scheduler=") or "all"
