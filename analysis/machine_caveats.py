"""What the machine did to a sweep's figures: other work on it, warmth, false peaks, kernels compiled too late."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from analysis.summary import numbers

# A sweep alone keeps all cores busy, so a load average of about one a core is its own.
BUSY_LOAD_PER_CORE = 1.25

WARMEST_SPREAD_C = 10
SLOWEST_CLOCK = 0.95

_LOAD = re.compile(r"load_?av", re.IGNORECASE)
_CORES = re.compile(r"cpu_?count|num_cpus|(?<!num_)cores|num_cores", re.IGNORECASE)


def machine_caveats(finished: pd.DataFrame) -> list[str]:
    """Sentences about the runs that finished; none where there is nothing to say."""
    # Virtual times are the same on any machine.
    real = finished[~column_of(finished, "simulated").eq(True)]
    return [
        *_crowded(real),
        *_load_average(real),
        *_sensors(finished),
        *_beyond_peaks(finished),
        *_compilations(finished),
    ]


def column_of(table: pd.DataFrame, name: str) -> pd.Series:
    """A column, nulls where the table has none."""
    return table[name] if name in table else pd.Series(float("nan"), index=table.index)


def _compilations(finished: pd.DataFrame) -> list[str]:
    """Kernels that a warm-up should have compiled."""
    counts = numbers(column_of(finished, "num_compilations")).fillna(0)
    late = int(counts.gt(0).sum())
    if not late:
        return []
    return [
        f"{int(counts.sum())} kernels were compiled while requests were measured, in {late} of {len(finished)} runs: "
        "their times contain that of the compiler."
    ]


def _crowded(finished: pd.DataFrame) -> list[str]:
    """Runs of the sweep itself beside each other."""
    at_once = numbers(column_of(finished, "design.num_at_once"))
    crowded = finished[at_once.gt(1)]
    if crowded.empty:
        return []
    names = ", ".join(sorted(set(crowded["design.launcher"].dropna())))
    return [
        f"{len(crowded)} of {len(finished)} runs ran up to {int(at_once.max())} at a time on one machine (launcher "
        f"{names}): they disturb each other's times, so trust counts and quality, not speeds."
    ]


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


def _sensors(finished: pd.DataFrame) -> list[str]:
    """A GPU that grew warm or slow."""

    def both(what: str, unit: str) -> pd.Series:
        columns = [column_of(finished, f"env.gpu_{what}_{when}_{unit}") for when in ("start", "end")]
        return pd.concat([numbers(column) for column in columns]).dropna()

    made = []
    warmth, clock = both("temperature", "c"), numbers(column_of(finished, "env.gpu_clock_end_mhz")).dropna()
    if len(warmth) and np.ptp(warmth) >= WARMEST_SPREAD_C:
        made.append(
            f"The GPU was between {warmth.min():.0f} and {warmth.max():.0f} °C warm; sweep.cool_down_s may help."
        )
    if len(clock) and clock.min() < SLOWEST_CLOCK * clock.max():
        made.append(f"The GPU's clock at the end of a run was between {clock.min():.0f} and {clock.max():.0f} MHz.")
    return made


def _beyond_peaks(finished: pd.DataFrame) -> list[str]:
    """Fractions of a ceiling that is none."""
    made = []
    for what, why in (
        ("mbu", "the model fits into a cache, or the peak was measured while something else ran"),
        ("mfu", "products of 8-bit integers are not bound by a peak of floats, or it was measured beside other work"),
    ):
        beyond = int(numbers(column_of(finished, f"{what}_fraction")).gt(1).sum())
        if beyond:
            made.append(f"{what.upper()} is above 1 in {beyond} of {len(finished)} runs: {why}.")
    return made
