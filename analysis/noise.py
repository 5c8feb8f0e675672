"""The noise floor: how far apart two points come out that are the same.

Points whose configs are equal but for a name (`cfg.label`, `cfg.variant`) are A/A points; `experiment=aa` makes some.
Whatever they differ by is what this sweep on this machine makes of nothing, systematic errors of the order of runs
included, and no difference between other points that is smaller should be believed.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from analysis.columns import POINT_KEY
from analysis.intervals import CONFIDENCE
from analysis.load import Sweep
from analysis.naming import VARIANT, codes, is_config

LABEL = "cfg.label"
# What names a point and sets nothing.
NAMES = (LABEL, VARIANT)

PointKey = tuple[str, str]


def aa_groups(sweep: Sweep) -> list[list[PointKey]]:
    """Points by (sweep, point_id) that are the same but for their names; groups of two or more."""
    firsts = sweep.runs.drop_duplicates(POINT_KEY)
    columns = [column for column in firsts.columns if is_config(column) and column not in NAMES]
    configs = np.array([codes(firsts[column]) for column in ["sweep", *columns]]).T
    named = [column for column in NAMES if column in firsts]
    # Points that differ in nothing at all that was recorded differ in something that was not.
    names = [tuple(row) for row in np.array([codes(firsts[column]) for column in named]).T] if named else []
    keys = list(firsts[POINT_KEY].itertuples(index=False, name=None))
    groups: dict[bytes, dict[tuple[int, ...], PointKey]] = {}
    for config, name, key in zip(configs, names, keys, strict=bool(named)):
        groups.setdefault(config.tobytes(), {}).setdefault(name, key)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def noise_floor(values: pd.DataFrame, *, logs: bool = True) -> float:
    """How far apart equal points come out, as a ratio less 1.

    The larger of the widest distance seen between two of their means, and the 95 % range that the mean difference of
    two has by their spread. Which of them is larger depends on luck and on the number of repeats; one lucky pair of
    equal means does not make a floor of nothing.

    Args:
        values: a row a repeat, a column an A/A point; repeats that one of them lacks are left out.
        logs: figures above 0, compared by their logarithms; else by differences as fractions of the mean.

    Returns:
        NaN under two repeats.
    """
    whole = values.dropna().to_numpy(dtype=float)
    num_repeats, num_labels = whole.shape
    if num_repeats < 2 or num_labels < 2:
        return np.nan
    if logs:
        whole = np.log(whole)
    elif whole.mean():
        whole = whole / abs(whole.mean())
    elif np.ptp(whole):
        return np.nan
    means = whole.mean(axis=0)
    # What a repeat did to all labels alike is no noise of a comparison.
    residuals = whole - whole.mean(axis=1, keepdims=True) - means + whole.mean()
    freedom = (num_repeats - 1) * (num_labels - 1)
    spread = np.sqrt((residuals**2).sum() / freedom)
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * spread * np.sqrt(2 / num_repeats)
    floor = max(float(np.ptp(means)), float(reach))
    return float(np.expm1(floor)) if logs else floor
