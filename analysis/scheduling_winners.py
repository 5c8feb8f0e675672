"""Who wins where: under each load of each setting the best policy by each metric, and who cannot be told from it.

The policy of the best mean is compared with each other one, paired by repeat (the same repeat had the same requests),
by the verdicts that all comparisons here have. A policy that is not told from the best shares its place. p values are
corrected for the policies of a cell, by Holm: that the best was picked by its figures costs nothing more, for to be
wrong about the truly best policy takes one of the comparisons with it, of which there are no more than were corrected
for (Hsu 1981, multiple comparisons with the best). Cells are questions of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.baseline import PointKey
from analysis.direction import direction_of
from analysis.intervals import Paired, holm, paired
from analysis.load import Sweep
from analysis.metrics import Metric
from analysis.scheduling_metrics import ATTAINMENT, GOODPUT, LATENCY_METRICS, with_derived
from analysis.schedulings import scheduling
from analysis.values import repeats_of
from analysis.verdicts import EQUAL_WITHIN, NOT_MEASURED, TOO_FEW, verdict

(_TTFT, _TTFT_99), (_, _ITL_99), (_E2E, _E2E_99), (_LATENCY, _) = LATENCY_METRICS
JUDGED: tuple[Metric, ...] = (_TTFT, _TTFT_99, _ITL_99, _E2E, _E2E_99, _LATENCY, GOODPUT, ATTAINMENT)
_COLUMNS = "setting load metric best mean alike runner_up ratio ratio_low ratio_high num_policies is_told"
COLUMNS = _COLUMNS.split()


def winners(
    sweep: Sweep,
    frame: pd.DataFrame | None = None,
    *,
    metrics: Sequence[Metric] = JUDGED,
    equal_within: float = EQUAL_WITHIN,
) -> pd.DataFrame:
    """The best policy of each setting, load and metric.

    Args:
        sweep: from `analysis.load`.
        frame: from `analysis.scheduling`, which is asked where None.
        metrics: to judge by.
        equal_within: the band of equality, as a fraction.

    Returns:
        One row each: `setting load metric` (its column), `best` policy with its `mean`, `alike`, the others that are
        not told from it, best first; `runner_up`, and `ratio` of the best to it with the ends of its 95 % interval
        (null where a figure is 0 or less); `num_policies`; `is_told`, whether the best was told from all others, null
        where there are too few repeats to tell.
    """
    frame = scheduling(sweep) if frame is None else frame
    rows: list[dict[str, Any]] = []
    if len(frame):
        derived = with_derived(sweep)
        tables = {metric.column: repeats_of(derived, metric.column) for metric in metrics if metric.column in frame}
        loads = frame.assign(load=frame["load"].fillna(math.inf))
        for (setting, load), group in loads.groupby(["setting", "load"], sort=False):
            points = group.drop_duplicates("policy").set_index("policy")
            keys = dict(
                zip(points.index, points[["sweep", "point_id"]].itertuples(index=False, name=None), strict=True)
            )
            for metric in metrics:
                if metric.column in tables:
                    found = _cell(tables[metric.column], keys, metric, equal_within)
                    if found is not None:
                        head = {"setting": setting, "load": load if math.isfinite(load) else math.nan}
                        rows.append({**head, "metric": metric.column, **found})
    words = ("setting", "metric", "best", "alike", "runner_up", "is_told")
    return pd.DataFrame(
        {
            name: pd.Series([row[name] for row in rows], dtype="object" if name in words else "float64")
            for name in COLUMNS
        }
    )


def _cell(table: pd.DataFrame, keys: dict[str, PointKey], metric: Metric, equal_within: float) -> dict[str, Any] | None:
    direction = direction_of(metric.column)
    values = {policy: table[key].to_numpy(dtype=float) for policy, key in keys.items()}
    values = {policy: one for policy, one in values.items() if np.isfinite(one).any()}
    if len(values) < 2:
        return None
    sign = -1.0 if direction.higher_is_better else 1.0
    means = {policy: float(np.nanmean(one)) for policy, one in values.items()}
    best, *others = sorted(means, key=lambda policy: sign * means[policy])
    if means[best] == means[others[-1]]:
        # Nothing to choose: all meet every limit, or none is ever preempted.
        return {
            **dict.fromkeys(("ratio", "ratio_low", "ratio_high"), math.nan),
            **{"best": best, "mean": means[best], "alike": others, "runner_up": others[0]},
            **{"num_policies": len(values), "is_told": False},
        }
    found = [_against(values[best], values[policy]) for policy in others]
    adjusted = holm(np.array([one.p for one in found]))
    said = [verdict(one, p, direction, equal_within=equal_within) for one, p in zip(found, adjusted, strict=True)]
    better = direction.up if direction.higher_is_better else direction.down
    alike = [policy for policy, word in zip(others, said, strict=True) if word != better]
    unknown = all(word in (TOO_FEW, NOT_MEASURED) for word in said)
    return {
        "best": best,
        "mean": means[best],
        "alike": alike,
        "runner_up": others[0],
        "ratio": found[0].ratio,
        "ratio_low": found[0].ratio_low,
        "ratio_high": found[0].ratio_high,
        "num_policies": len(values),
        "is_told": None if unknown else not alike,
    }


def _against(values: np.ndarray, other: np.ndarray) -> Paired:
    both = np.isfinite(values) & np.isfinite(other)
    return paired(values[both], other[both])
