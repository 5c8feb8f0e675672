"""What each knob does, and whether two knobs do more together than each alone.

On a logarithmic scale, since knobs multiply: a cache that saves a third saves a third of whatever is left. A *main
effect* is the ratio between two values of a knob, averaged over all settings of the other knobs in which both were
measured. A *two-way interaction* is a ratio of such ratios: by how much the effect of one knob changes with the value
of another; 1 means that the two effects simply multiply.

Everything is matched: only settings that differ in nothing but the knobs in question are set against each other, so
that missing or failed points bias nothing, and it is done repeat by repeat, so that intervals are over repeats.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.columns import POINT_KEY
from analysis.direction import direction_of
from analysis.intervals import CONFIDENCE, check_method, estimate, holm
from analysis.load import Sweep
from analysis.metrics import THROUGHPUT
from analysis.naming import axes, format_value, short_names
from analysis.values import repeats_of

_COLUMNS = "kind knob value reference knob2 value2 reference2 ratio low high n num_settings p p_holm"
COLUMNS = _COLUMNS.split()

# (knob, value, reference), and the settings of all other knobs.
Change = tuple[int, str, str]


def effects(sweep: Sweep, metric: str = THROUGHPUT.column, *, interval: str = "t") -> pd.DataFrame:
    """Main effects and two-way interactions of the knobs that a sweep varied.

    Args:
        metric: any column of `runs` of figures above 0.
        interval: `t`, or `bootstrap`, which is too narrow for few repeats.

    Returns:
        One row a change of a knob from its first value (`reference`) to another (`value`), and one a pair of such
        changes: `kind` (main, interaction), `knob value reference`, `knob2 value2 reference2` (null for main effects),
        `ratio low high` (geometric, with the 95 % interval over repeats), `n` repeats, `num_settings` of the other
        knobs it is averaged over, `p`, `p_holm` over all rows. Interactions that no settings show are left out.

    Raises:
        ValueError: no such metric, or figures that are not above 0.
    """
    check_method(interval)
    values = repeats_of(sweep, metric)
    if (values <= 0).any().any():
        raise ValueError(f"metric={metric}: must be above 0 everywhere for effects, as they are ratios")
    columns = axes(sweep)
    names = list(short_names(columns).values())
    firsts = sweep.runs.drop_duplicates(POINT_KEY).set_index(POINT_KEY)
    # Sweeps that were loaded together are a knob of their own.
    if len(sweep.folders) > 1:
        names.insert(0, "sweep")
    settings = {
        key: (*(key[:1] if len(sweep.folders) > 1 else ()), *(format_value(firsts.at[key, c]) for c in columns))
        for key in values.columns
    }
    logs = {settings[key]: np.log(values[key].to_numpy(dtype=float)) for key in values.columns}
    levels = [list(dict.fromkeys(setting[i] for setting in logs)) for i in range(len(names))]
    changes = [(i, value, levels[i][0]) for i in range(len(names)) for value in levels[i][1:]]
    rows = [_row(names, (change,), _main(logs, change), interval) for change in changes]
    for first, second in combinations(changes, 2):
        if first[0] != second[0]:
            rows.append(_row(names, (first, second), _interaction(logs, first, second), interval))
    made = pd.DataFrame([row for row in rows if row is not None], columns=COLUMNS)
    made["p_holm"] = holm(made["p"].to_numpy(dtype=float))
    made.attrs |= {
        "metric": metric,
        "higher_is_better": direction_of(metric).higher_is_better,
        "confidence": CONFIDENCE,
    }
    return made


def _main(logs: dict[tuple[str, ...], np.ndarray], change: Change) -> list[np.ndarray]:
    """Log ratios of a change, one array over repeats a setting of the other knobs."""
    place, value, reference = change
    contexts: dict[tuple[str, ...], dict[str, np.ndarray]] = defaultdict(dict)
    for setting, found in logs.items():
        contexts[(*setting[:place], *setting[place + 1 :])][setting[place]] = found
    return [at[value] - at[reference] for at in contexts.values() if value in at and reference in at]


def _interaction(logs: dict[tuple[str, ...], np.ndarray], first: Change, second: Change) -> list[np.ndarray]:
    """Differences of log ratios: the first change under the second's value, less under its reference."""
    places = (first[0], second[0])
    contexts: dict[tuple[str, ...], dict[tuple[str, str], np.ndarray]] = defaultdict(dict)
    for setting, found in logs.items():
        rest = tuple(value for i, value in enumerate(setting) if i not in places)
        contexts[rest][(setting[first[0]], setting[second[0]])] = found
    corners = [(a, b) for a in first[1:] for b in second[1:]]
    return [
        at[corners[0]] - at[corners[1]] - at[corners[2]] + at[corners[3]]
        for at in contexts.values()
        if all(corner in at for corner in corners)
    ]


def _row(names: list[str], changes: tuple[Change, ...], found: list[np.ndarray], interval: str) -> list[object] | None:
    # A setting that lacks a repeat would weigh on some repeats and not on others.
    whole = [values for values in found if np.isfinite(values).any()]
    if not whole:
        return None
    by_repeat = np.vstack(whole)
    complete = by_repeat[:, np.isfinite(by_repeat).all(axis=0)].mean(axis=0)
    made = estimate(complete, method=interval)
    (place, value, reference), *rest = changes
    second = (names[rest[0][0]], *rest[0][1:]) if rest else (None, None, None)
    kind = "interaction" if rest else "main"
    ratio, low, high = (float(np.exp(part)) for part in (made.mean, made.low, made.high))
    return [
        *(kind, names[place], value, reference, *second),
        *(ratio, low, high, made.num, len(whole), made.p, np.nan),
    ]
