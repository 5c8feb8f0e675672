"""How true a simulation is: simulated points against real ones of the same policy, setting and load.

Figures are compared repeat by repeat, since the same repeat had the same requests, and rankings of policies by what
the real runs can tell: of the pairs of policies that they tell apart, how many the simulation puts in the same order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.direction import direction_of
from analysis.intervals import holm, paired
from analysis.load import Sweep
from analysis.metrics import THROUGHPUT, Metric, metric_of
from analysis.schedulings import scheduling
from analysis.values import repeats_of
from analysis.verdicts import EQUAL_WITHIN, verdict

# A figure further off than this is marked: means, and 90th percentiles.
TOLERANCE, TOLERANCE_P90 = 0.05, 0.1
COMPARED: tuple[Metric, ...] = (
    THROUGHPUT,
    *(metric_of(f"{latency}_{part}_s") for latency in ("ttft", "tpot", "e2e") for part in ("mean", "p90")),
)
_ERRORS_NAMES = "rest load policy metric num_pairs real simulated error error_low error_high tolerance is_within"
_ERRORS = _ERRORS_NAMES.split()
_RANKS_NAMES = "rest load metric num_policies spearman kendall num_told num_agreeing"
_RANKS = _RANKS_NAMES.split()
_WORDS = ("rest", "policy", "metric", "is_within")


def fidelity(sweep: Sweep, frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """Errors of the simulation.

    Args:
        sweep: from `analysis.load`; real and simulated points may lie in two folders, loaded together.
        frame: from `analysis.scheduling`, which is asked where None.

    Returns:
        One row a setting, load, policy and metric that was run both ways: `rest` (the setting), `load policy metric
        num_pairs`, means over the repeats that both have, `real` and `simulated`; `error`, their ratio less 1, with the
        ends of its 95 % interval; `tolerance`, 5 % of means and 10 % of 90th percentiles, and `is_within`. Empty where
        nothing was run both ways. `.attrs` has `ranking`, a frame of one row a setting, load and metric: rank
        correlations of the policies, `num_told` pairs of policies that the real runs tell apart (p under 0.05 after
        Holm, beyond 1 %), and `num_agreeing` of them that the simulation orders alike.
    """
    frame = scheduling(sweep) if frame is None else frame
    errors: list[dict[str, Any]] = []
    ranks: list[dict[str, Any]] = []
    known = [metric for metric in COMPARED if metric.column in sweep.runs]
    tables = {metric.column: repeats_of(sweep, metric.column) for metric in known} if _has_both(frame) else {}
    for (rest, load), group in frame.assign(load=frame["load"].fillna(math.inf)).groupby(["rest", "load"], sort=False):
        head = {"rest": rest, "load": load if math.isfinite(load) else math.nan}
        real, simulated = (group[group["simulated"].eq(is_simulated)] for is_simulated in (False, True))
        keys = [
            {row["policy"]: (row["sweep"], row["point_id"]) for _, row in rows.iterrows()} for rows in (real, simulated)
        ]
        policies = [policy for policy in keys[0] if policy in keys[1]]
        for metric in known if tables and policies else ():
            table = tables[metric.column]
            values = {p: tuple(table[own[p]].to_numpy(dtype=float) for own in keys) for p in policies}
            found = [{**head, "policy": p, **_error(values[p][0], values[p][1], metric)} for p in policies]
            errors += [row for row in found if row["num_pairs"]]
            ranked = _rank(values, metric)
            if ranked is not None:
                ranks.append({**head, "metric": metric.column, **ranked})
    made = _frame(errors, _ERRORS)
    made.attrs["ranking"] = _frame(ranks, _RANKS)
    return made


def _has_both(frame: pd.DataFrame) -> bool:
    return len(frame) > 0 and frame["simulated"].eq(True).any() and frame["simulated"].eq(False).any()


def _error(real: np.ndarray, simulated: np.ndarray, metric: Metric) -> dict[str, Any]:
    both = np.isfinite(real) & np.isfinite(simulated)
    found = paired(simulated[both], real[both])
    tolerance = TOLERANCE_P90 if "_p90_" in metric.column else TOLERANCE
    error = found.ratio - 1
    return {
        "metric": metric.column,
        "num_pairs": found.num_pairs,
        "real": found.baseline_mean,
        "simulated": found.mean,
        "error": error,
        "error_low": found.ratio_low - 1,
        "error_high": found.ratio_high - 1,
        "tolerance": tolerance,
        "is_within": None if math.isnan(error) else abs(error) <= tolerance,
    }


def _rank(values: dict[str, tuple[np.ndarray, np.ndarray]], metric: Metric) -> dict[str, Any] | None:
    """Of two policies or more."""
    known = {p: v for p, v in values.items() if all(np.isfinite(one).any() for one in v)}
    if len(known) < 2:
        return None
    real, simulated = (np.array([np.nanmean(v[place]) for v in known.values()]) for place in (0, 1))
    told = _told(known, metric)
    agreeing = [(real[a] - real[b]) * (simulated[a] - simulated[b]) > 0 for a, b in told]
    is_flat = len(set(real)) < 2 or len(set(simulated)) < 2
    return {
        "num_policies": len(known),
        "spearman": math.nan if is_flat else float(stats.spearmanr(real, simulated).statistic),
        "kendall": math.nan if is_flat else float(stats.kendalltau(real, simulated).statistic),
        "num_told": len(told),
        "num_agreeing": int(sum(agreeing)),
    }


def _told(values: dict[str, tuple[np.ndarray, np.ndarray]], metric: Metric) -> list[tuple[int, int]]:
    """Places of the policies that the real runs tell apart."""
    pairs = list(itertools.combinations(range(len(values)), 2))
    real = [one for one, _ in values.values()]
    found = []
    for a, b in pairs:
        both = np.isfinite(real[a]) & np.isfinite(real[b])
        found.append(paired(real[a][both], real[b][both]))
    direction = direction_of(metric.column)
    said = [
        verdict(one, p, direction, equal_within=EQUAL_WITHIN)
        for one, p in zip(found, holm(np.array([one.p for one in found])), strict=True)
    ]
    return [pair for pair, word in zip(pairs, said, strict=True) if word in (direction.up, direction.down)]


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {n: pd.Series([row[n] for row in rows], dtype="object" if n in _WORDS else "float64") for n in columns}
    )
