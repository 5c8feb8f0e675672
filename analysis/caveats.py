"""What a reader must know before believing a sweep's figures, one sentence each.

Only what the tables themselves show. Tests of drift, saturation and contamination will stand here too.
"""

from __future__ import annotations

import re

import pandas as pd

from analysis.columns import OK
from analysis.load import Sweep
from analysis.metrics import METRICS
from analysis.naming import BASELINE
from analysis.summary import numbers

# Below this a spread is hardly more than an anecdote.
FEW_REPEATS = 3

# A sweep alone keeps all cores busy, so a load average of about one a core is its own.
BUSY_LOAD_PER_CORE = 1.25

_LOAD = re.compile(r"load_?av", re.IGNORECASE)
_CORES = re.compile(r"cpu_?count|num_cpus|(?<!num_)cores|num_cores", re.IGNORECASE)
# Differ from run to run by nature and say nothing about the environment being another.
_RESTLESS = re.compile(r"load_?av|temperature|clock|free|available|hostname_pid|\bpid\b", re.IGNORECASE)


def caveats(sweep: Sweep, points: pd.DataFrame) -> list[str]:
    """Everything that limits what this sweep can say.

    Args:
        sweep: from `analysis.load`.
        points: from `analysis.points`.

    Returns:
        Sentences; none where there is nothing to say.
    """
    made: list[str] = []
    finished = sweep.runs[sweep.runs["status"] == OK]
    failed = len(sweep.runs) - len(finished)
    if failed:
        made.append(f"{failed} of {len(sweep.runs)} runs did not finish; means are over those that did.")
    if len(finished) and points["num_repeats"].max() < FEW_REPEATS:
        most = int(points["num_repeats"].max())
        reads = "no spread to judge a difference by" if most == 1 else "spreads are ranges, not confidence intervals"
        made.append(f"At most {most} finished repeat{'s' * (most > 1)} a point: {reads}.")
    ran = points[points["num_repeats"] > 0]
    if ran["num_repeats"].nunique() > 1:
        made.append(f"Points have between {ran['num_repeats'].min()} and {ran['num_repeats'].max()} finished repeats.")
    base = points[points["is_baseline"]]
    if len(points) > 1 and (base.empty or (base["num_repeats"] == 0).any()):
        which = f"the baseline point ({', '.join(base['label'])}) did not finish"
        made.append(f"No speed-ups where {which if len(base) else f'no point is called {BASELINE}'}.")
    made += _load_average(finished)
    differing = [name for name, values in environment(sweep).items() if len(values) > 1 and not is_restless(name)]
    if differing:
        made.append(f"The environment changed within the sweep: {', '.join(f'`{name}`' for name in differing)}.")
    if len(finished):
        silent = [m.title for m in METRICS if m.key and not numbers(_column(finished, m.column)).notna().any()]
        if silent:
            made.append(f"Not measured in any run: {', '.join(silent)}.")
        workloads = finished.groupby("repeat")["workload_sha256"].nunique()
        if len(workloads) and workloads.max() > 1:
            made.append("Points did not all get the same workload: they differ by more than the swept options.")
    made += [f"{warning}." for warning in sweep.warnings]
    return made


def environment(sweep: Sweep) -> dict[str, dict[str, int]]:
    """What the runs ran on: each env.* column without its prefix, its values as text, and how many runs had each."""
    made = {}
    for column in sweep.runs.columns:
        if column.startswith("env."):
            values = sweep.runs[column].dropna()
            counts = values.map(str).value_counts(sort=False)
            if len(counts):
                made[column.removeprefix("env.")] = {str(value): int(count) for value, count in counts.items()}
    return made


def is_restless(name: str) -> bool:
    """Whether an environment value may differ between runs without the environment being another."""
    return bool(_RESTLESS.search(name))


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    return table[name] if name in table else pd.Series(float("nan"), index=table.index)


def _load_average(finished: pd.DataFrame) -> list[str]:
    env = [column for column in finished.columns if column.startswith("env.")]
    loads = [column for column in env if _LOAD.search(column)]
    cores = [column for column in env if _CORES.search(column)]
    if not loads or not cores:
        return []
    load = finished[loads].apply(numbers).max(axis=1)
    busy = int((load > BUSY_LOAD_PER_CORE * finished[cores].apply(numbers).max(axis=1)).sum())
    if not busy:
        return []
    return [
        f"{busy} of {len(finished)} runs saw a load average well above the number of cores (up to {load.max():.1f}): "
        "something else was running, so times may be too long."
    ]
