"""Every point against a baseline, or one sweep against another: ratio, interval, p, and a verdict to be quoted."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.baseline import PointKey, Spec, baselines
from analysis.columns import OK, POINT_KEY
from analysis.comparison_caveats import between_caveats, pair_caveats, sweep_caveats
from analysis.direction import direction_of
from analysis.intervals import CONFIDENCE, Paired, check_method, holm, paired
from analysis.load import Sweep
from analysis.metrics import THROUGHPUT
from analysis.naming import labels
from analysis.noise import aa_groups, noise_floor
from analysis.planning import detectable_effect, repeats_needed
from analysis.values import repeats_of
from analysis.verdicts import EQUAL_WITHIN, verdict

_COLUMNS = (
    "sweep point_id label baseline num_pairs mean baseline_mean ratio ratio_low ratio_high "
    "difference difference_low difference_high p p_holm noise_floor detectable verdict repeats_needed"
)
COLUMNS = _COLUMNS.split()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pair:
    """A point and what it is compared with; values by repeat."""

    key: PointKey
    base: PointKey
    label: str
    baseline: str
    values: pd.Series
    baseline_values: pd.Series
    # Both are the same but for a name: no floor is made of the difference that it is held against.
    is_aa: bool


def compare(
    sweep: Sweep,
    other: Sweep | None = None,
    *,
    baseline: Spec = None,
    metric: str = THROUGHPUT.column,
    within: Sequence[str] | str = (),
    equal_within: float = EQUAL_WITHIN,
    effect: float = 0.05,
    interval: str = "t",
) -> pd.DataFrame:
    """Compare points, paired by repeat: the same repeat of two points has the same workload.

    Args:
        sweep: from `analysis.load`.
        other: a second sweep; its points are compared with those of the same config in `sweep`, the baseline.
        baseline: within one sweep, the point to compare with: `quantization=none`,
            `scheduler=fcfs,cache.block_size=16`, a mapping of the same, or a point's label. None is the variant
            `baseline`, or else the first point.
        metric: any column of numbers of `runs`, one number a repeat.
        within: knobs to hold fixed, so that each setting of them has its own baseline.
        equal_within: the band of equality, as a fraction: a verdict must clear it or lie in it.
        effect: `repeats_needed` is for a true difference of this fraction.
        interval: `t`, or `bootstrap`, which is too narrow for few repeats (see `analysis.intervals`).

    Returns:
        One row a point other than the baseline: `sweep point_id label baseline num_pairs mean baseline_mean`, `ratio`
        to the baseline (geometric mean; null where a figure is 0 or less) and `difference`, each with the ends of its
        95 % interval `_low`, `_high`; `p` of no difference and `p_holm`, corrected for all rows; `noise_floor`, how far
        A/A points of these sweeps came apart, and `detectable`, the smallest difference that this many repeats find in
        90 % of cases (both as ratio less 1); `verdict` (see `analysis.verdicts`); `repeats_needed` to find a difference
        of `effect` in 90 % of cases. What is not known is null. `.attrs` has `metric`, `higher_is_better`,
        `equal_within`, `effect`, and `caveats`, sentences.

    Raises:
        ValueError: no such metric or no figure of it, a baseline that fits no point or several, no common points.
    """
    check_method(interval)
    if not 0 <= equal_within < effect:
        raise ValueError(f"equal_within={equal_within:g}: must be 0 or more and under effect={effect:g}")
    if other is not None and baseline is not None:
        raise ValueError(f"baseline={baseline}: leave it out where two sweeps are compared; the first is the baseline")
    if isinstance(within, str):
        within = [name for name in within.split(",") if name]
    sweeps = [sweep] if other is None else [sweep, other]
    values = [repeats_of(one, metric) for one in sweeps]
    if all(not one.notna().any().any() for one in values):
        _refuse_empty(metric, sweeps)
    aa = [aa_groups(one) for one in sweeps]
    if other is None:
        pairs = _within(sweep, values[0], aa[0], baselines(sweep, baseline, within))
    else:
        pairs = _between(sweep, other, values)
    both = [pair.values.index.intersection(pair.baseline_values.index) for pair in pairs]
    logs = all(
        min(p.values[at].min(), p.baseline_values[at].min()) > 0 for p, at in zip(pairs, both, strict=True) if len(at)
    )
    found = [
        paired(pair.values[at].to_numpy(), pair.baseline_values[at].to_numpy(), method=interval, logs=logs)
        for pair, at in zip(pairs, both, strict=True)
    ]
    floors = [noise_floor(one[group], logs=logs) for one, groups in zip(values, aa, strict=True) for group in groups]
    floor = max((one for one in floors if not math.isnan(one)), default=math.nan)
    adjusted = holm(np.array([one.p for one in found]))
    direction = direction_of(metric)
    num_tested = max(1, int((~np.isnan(adjusted)).sum()))
    detects = functools.partial(detectable_effect, num_comparisons=num_tested, margin=equal_within)
    needs = functools.partial(repeats_needed, effect=effect, num_comparisons=num_tested, margin=equal_within)
    rows = []
    for pair, one, p_holm in zip(pairs, found, adjusted, strict=True):
        own_floor = math.nan if pair.is_aa else floor
        rows.append(
            [*pair.key, pair.label, pair.baseline, one.num_pairs, one.mean, one.baseline_mean]
            + [one.ratio, one.ratio_low, one.ratio_high, one.difference, one.difference_low, one.difference_high]
            + [one.p, p_holm, own_floor, detects(one.spread, one.num_pairs)]
            + [verdict(one, p_holm, direction, equal_within=equal_within, noise_floor=own_floor)]
            + [needs(one.spread, one.num_pairs)]
        )
    made = pd.DataFrame(rows, columns=COLUMNS)
    made.attrs |= {
        "metric": metric,
        "higher_is_better": direction.higher_is_better,
        "equal_within": equal_within,
        "effect": effect,
        "confidence": CONFIDENCE,
        "caveats": _caveats(sweeps, pairs, found, metric, floor),
    }
    return made


def _within(
    sweep: Sweep, values: pd.DataFrame, groups: Sequence[Sequence[PointKey]], bases: Mapping[PointKey, PointKey]
) -> list[_Pair]:
    names = labels(sweep)
    aa = {key: i for i, group in enumerate(groups) for key in group}
    return [
        _Pair(
            key=key,
            base=base,
            label=names[key],
            baseline=names[base],
            values=values[key].dropna(),
            baseline_values=values[base].dropna(),
            is_aa=key in aa and aa[key] == aa.get(base),
        )
        for key, base in bases.items()
        if key != base
    ]


def _between(sweep: Sweep, other: Sweep, values: Sequence[pd.DataFrame]) -> list[_Pair]:
    before, after = (_by_point(one) for one in (sweep, other))
    common = [point for point in after if point in before]
    if not common:
        raise ValueError(
            f"other={_folders(other)}: has no point of the same config as {_folders(sweep)}; compare sweeps of one "
            "experiment, or load both at once and name a baseline"
        )
    old, new = labels(sweep), labels(other)
    return [
        _Pair(
            key=after[point],
            base=before[point],
            label=new[after[point]],
            baseline=f"{before[point][0]}: {old[before[point]]}",
            values=values[1][after[point]].dropna(),
            baseline_values=values[0][before[point]].dropna(),
            is_aa=False,
        )
        for point in common
    ]


def _by_point(sweep: Sweep) -> dict[str, PointKey]:
    keys = list(sweep.runs.drop_duplicates(POINT_KEY)[POINT_KEY].itertuples(index=False, name=None))
    made = {key[1]: key for key in keys}
    if len(made) < len(keys):
        raise ValueError(f"{_folders(sweep)}: several of these folders hold the same point; compare them one by one")
    return made


def _caveats(
    sweeps: Sequence[Sweep], pairs: Sequence[_Pair], found: Sequence[Paired], metric: str, floor: float
) -> list[str]:
    own = [(pair.key, pair.base) for pair in pairs]
    made = between_caveats(*sweeps) if len(sweeps) == 2 else sweep_caveats(sweeps[0], own)
    made += pair_caveats([pair.label for pair in pairs], found, [len(pair.values) for pair in pairs])
    if math.isnan(floor) and any(one.num_pairs > 1 for one in found):
        made.append(
            "No A/A points (the same config under two labels), so no noise floor stands beside the differences."
        )
    return made


def _refuse_empty(metric: str, sweeps: Sequence[Sweep]) -> None:
    if not any((one.runs["status"] == OK).any() for one in sweeps):
        raise ValueError(f"{_folders(sweeps[0])}: no run finished, so there is nothing to compare")
    raise ValueError(f"metric={metric}: null in every finished run; it was not measured here")


def _folders(sweep: Sweep) -> str:
    return ", ".join(map(str, sweep.folders))
