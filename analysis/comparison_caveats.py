"""What a reader must know before believing a comparison, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.baseline import PointKey
from analysis.caveats import environment, is_restless
from analysis.columns import OK, POINT_KEY
from analysis.intervals import Paired
from analysis.load import Sweep
from analysis.planning import MIN_PAIRS

MAX_NAMED = 6


def sweep_caveats(sweep: Sweep, pairs: Sequence[tuple[PointKey, PointKey]]) -> list[str]:
    """Of one sweep's own points against each other.

    Args:
        sweep: from `analysis.load`.
        pairs: points that are compared.
    """
    differing = [
        f"env.{name} ({', '.join(values)})"
        for name, values in environment(sweep).items()
        if len(values) > 1 and not is_restless(name)
    ]
    made = [f"The environment changed within the sweep: {'; '.join(differing)}."] if differing else []
    versions = sorted(map(str, sweep.runs["schema_version"].dropna().unique()))
    if len(versions) > 1:
        made.append(
            f"Runs were written under several schema versions ({', '.join(versions)}): columns may mean other things."
        )
    finished = sweep.runs[sweep.runs["status"] == OK]
    keys = finished[[*POINT_KEY, "repeat"]].itertuples(index=False, name=None)
    known = {key: sha for key, sha in zip(keys, finished["workload_sha256"], strict=True) if pd.notna(sha)}
    both = [((*one, at), (*other, at)) for one, other in pairs for at in finished["repeat"].unique()]
    if any(one in known and other in known and known[one] != known[other] for one, other in both):
        made.append("The same repeat did not have the same workload in all points: pairs share less than they should.")
    return made


def between_caveats(sweep: Sweep, other: Sweep) -> list[str]:
    """Of one sweep against another: every env.* column that differs, and what no interval contains."""
    names = f"{_name(sweep)} and {_name(other)}"
    made = [
        f"{names} ran at different times: how the machine was in one and the other (clock, temperature, neighbours) is "
        "in the ratios and not in their intervals. Points of both in one sweep compare better."
    ]
    before, after = environment(sweep), environment(other)
    differing = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, {}), after.get(name, {})
        if is_restless(name):
            if _apart(old, new):
                differing.append(f"env.{name} ({_span(old)} -> {_span(new)})")
        elif set(old) != set(new) or len(old) > 1:
            differing.append(f"env.{name} ({_listed(old)} -> {_listed(new)})")
    if differing:
        made.append(f"The environments differ in {'; '.join(differing)}.")
    versions = [sorted(map(str, one.runs["schema_version"].dropna().unique())) for one in (sweep, other)]
    if versions[0] != versions[1] or len(versions[0]) > 1:
        shown = " -> ".join(", ".join(one) or "none" for one in versions)
        made.append(f"The schema versions differ ({shown}): columns of one name may mean different things.")
    workloads = [_workloads(one) for one in (sweep, other)]
    both = workloads[0].index.intersection(workloads[1].index)
    unlike = int((workloads[0][both] != workloads[1][both]).sum())
    if unlike:
        made.append(
            f"{unlike} of {len(both)} runs of both did not have the same workload: pairs share less than they should."
        )
    points = [set(one.runs["point_id"]) for one in (sweep, other)]
    for alone, name in ((points[0] - points[1], _name(sweep)), (points[1] - points[0], _name(other))):
        if alone:
            made.append(f"{len(alone)} point(s) are in {name} only and are not compared.")
    return made


def pair_caveats(labels: Sequence[str], found: Sequence[Paired], num_values: Sequence[int]) -> list[str]:
    """Of the pairs that a comparison found.

    Args:
        labels: one a comparison.
        found: one a comparison.
        num_values: finished repeats of the point, whether its baseline has them or not.
    """
    made = []
    if found and max(one.num_pairs for one in found) == 1:
        return [
            "There is one repeat only: the ratios stand, but nothing can be said of chance; run with repeats=5 or more."
        ]
    none = [label for label, one in zip(labels, found, strict=True) if not one.num_pairs]
    few = [label for label, one in zip(labels, found, strict=True) if 0 < one.num_pairs < MIN_PAIRS]
    lost = [label for label, one, num in zip(labels, found, num_values, strict=True) if 0 < one.num_pairs < num]
    if none:
        made.append(f"No repeat in which both the point and its baseline were measured: {_some(none)}.")
    if few:
        made.append(f"Under {MIN_PAIRS} repeats of both, too few for a verdict: {_some(few)}.")
    if lost:
        made.append(f"Repeats that the baseline lacks were left out: {_some(lost)}.")
    return made


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - MAX_NAMED} more" if len(labels) > MAX_NAMED else ""
    return "; ".join(labels[:MAX_NAMED]) + more


def _name(sweep: Sweep) -> str:
    return ", ".join(map(str, sweep.folders))


def _listed(values: dict[str, int]) -> str:
    return ", ".join(values) or "null"


def _workloads(sweep: Sweep) -> pd.Series:
    runs = sweep.runs[sweep.runs["status"] == OK].drop_duplicates("run_id")
    return runs.set_index("run_id")["workload_sha256"].dropna()


def _ends(values: dict[str, int]) -> tuple[float, float]:
    found = pd.to_numeric(pd.Series(list(values), dtype="object"), errors="coerce")
    return float(found.min()), float(found.max())


def _span(values: dict[str, int]) -> str:
    low, high = _ends(values)
    return f"{low:.3g} to {high:.3g}"


def _apart(old: dict[str, int], new: dict[str, int]) -> bool:
    """Whether two ranges do not meet; False where either is not of numbers."""
    (a, b), (c, d) = _ends(old), _ends(new)
    return b < c or d < a
