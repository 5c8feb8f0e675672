"""Which points of a sweep make one row of a table of precisions, and which row each is compared with.

A precision is a point without its batch size: `fp32` at 1, 8 and 32 requests at a time are three points and one row.
What else was varied stays in the row: `quantization=int4, scheduler=static`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.baseline import PointKey, Spec, fitting_points, knob_column
from analysis.columns import POINT_KEY
from analysis.load import Sweep
from analysis.naming import axes, codes, determines, format_value, label_of, short_names, varying
from analysis.summary import numbers

# The first of these that a sweep varied is its batch size: requests at a time, else room for them, else their rate.
_BATCH = (r"\.(concurrency|batch_size)$", r"\.max_num_seqs$", r"rate_rps$")
# Parts that may change outputs. Where any was varied, all other knobs are settings within which they are compared.
_LOSSY = re.compile(r"^cfg\.(variant$|quantization|kv_compression)|dtype|precision|compress")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One precision.

    Args:
        sweep: folder's name.
        label: its knobs but the batch size.
        points: by batch size, ascending; None is the size of a sweep that has one.
        base: place of the row it is compared with, which may be itself; None where that was not tried.
    """

    sweep: str
    label: str
    points: dict[float | None, PointKey]
    base: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """All precisions of a sweep.

    Args:
        rows: in the order in which their points first ran.
        batch: column of `runs` that is the batch size; None where none was varied.
        name: of the batch size, for people.
        sizes: all of them, ascending.
    """

    rows: tuple[Row, ...]
    batch: str | None
    name: str
    sizes: tuple[float | None, ...]


def rows_of(sweep: Sweep, baseline: Spec = None, batch: str | None = None) -> Rows:
    """Put the points of each precision together.

    Args:
        sweep: from `analysis.load`.
        baseline: as for `analysis.compare`; where it fits several rows, each is compared with the one that it shares
            their differences with. None is the variant `baseline`, or else the first precision that ran.
        batch: the knob that is the batch size; None looks for it.

    Raises:
        ValueError: no such knob, or a baseline that fits nothing.
    """
    firsts = sweep.runs.drop_duplicates(POINT_KEY).set_index(POINT_KEY, drop=False)
    if firsts.empty:
        return Rows(rows=(), batch=None, name="", sizes=(None,))
    column = batch_column(sweep) if batch is None else knob_column(sweep, batch, f"batch={batch}")
    columns = _row_columns(sweep, column)
    settings = {key: (key[0], *(format_value(row[c]) for c in columns)) for key, row in firsts.iterrows()}
    sizes = dict.fromkeys(settings) if column is None else numbers(firsts[column]).to_dict()
    # Points that differ in nothing that was recorded are rows of their own.
    taken: set[tuple[Any, ...]] = set()
    grouped: dict[tuple[str, ...], dict[float | None, PointKey]] = {}
    for key, setting in settings.items():
        if (setting, sizes[key]) in taken:
            settings[key] = setting = (*setting, key[1])
        taken.add((setting, sizes[key]))
        grouped.setdefault(setting, {})[sizes[key]] = key
    names = _labels(firsts, grouped, columns, short_names(axes(sweep) if column is None else [*axes(sweep), column]))
    known = sorted({size for size in sizes.values() if size is not None and not pd.isna(size)})
    found = _baselines(sweep, settings, list(grouped), columns, baseline)
    rows = [
        Row(
            sweep=setting[0],
            label=name,
            points={size: points[size] for size in (known or [None]) if size in points},
            base=base,
        )
        for (setting, points), name, base in zip(grouped.items(), names, found, strict=True)
    ]
    return Rows(rows=tuple(rows), batch=column, name=batch_name(column), sizes=tuple(known) or (None,))


def batch_column(sweep: Sweep) -> str | None:
    """The column of `runs` that is the batch size of a sweep; None where none was varied."""
    kept = axes(sweep)
    for pattern in _BATCH:
        for column in varying(sweep):
            if re.search(pattern, column) and (column in kept or _is_led_back(sweep, column, kept)):
                return column
    return None


def _is_led_back(sweep: Sweep, column: str, kept: Sequence[str]) -> bool:
    """Whether a column that is no axis says as much as one of its own group that is, such as a number of requests."""
    own = codes(sweep.runs[column])
    same = [codes(sweep.runs[axis]) for axis in kept if _group(axis) == _group(column)]
    return any(determines(own, axis) and determines(axis, own) for axis in same)


def _row_columns(sweep: Sweep, batch: str | None) -> list[str]:
    """The axes, without the batch size and what follows from it."""
    if batch is None:
        return axes(sweep)
    own = codes(sweep.runs[batch])

    def follows(column: str) -> bool:
        is_load = _group(column) == _group(batch) or any(re.search(pattern, column) for pattern in _BATCH)
        return column == batch or (is_load and determines(own, codes(sweep.runs[column])))

    return [column for column in axes(sweep) if not follows(column)]


def _group(column: str) -> str:
    return column.removeprefix("cfg.").split(".")[0]


def batch_name(column: str | None) -> str:
    """Of a batch size, for people."""
    if column is None:
        return ""
    sizes = re.search(r"concurrency|max_num_seqs|batch", column)
    return "batch size" if sizes else column.split(".")[-1].removesuffix("_rps").replace("_", " ")


def _labels(
    firsts: pd.DataFrame,
    grouped: dict[tuple[str, ...], dict[float | None, PointKey]],
    columns: Sequence[str],
    names: dict[str, str],
) -> list[str]:
    """Unique, with nulls named only where that is needed, and with the sweep where there are several."""
    rows = [firsts.loc[next(iter(points.values()))] for points in grouped.values()]
    brief = [label_of(row, columns, names, with_nulls=False) for row in rows]
    whole = [label_of(row, columns, names, with_nulls=True) for row in rows]
    several = firsts["sweep"].nunique() > 1
    made = []
    for setting, one, full in zip(grouped, brief, whole, strict=True):
        label = one if one and brief.count(one) == 1 else full
        label = f"{setting[0]}: {label}" if several and label else label or setting[0]
        # What follows the knobs' values is the id of a point that nothing else tells from another.
        made.append(" ".join([label, *setting[1 + len(columns) :]]))
    return made


def _baselines(
    sweep: Sweep,
    settings: dict[PointKey, tuple[str, ...]],
    rows: Sequence[tuple[str, ...]],
    columns: Sequence[str],
    spec: Spec,
) -> list[int | None]:
    """Of each row the place of what it is compared with."""
    fitting = list(dict.fromkeys(settings[key] for key in fitting_points(sweep, spec)))
    if spec is None:
        # All settings of what is exact have a baseline of their own; what is lossy is as in the first that fits.
        lossy = [i for i, column in enumerate(columns, start=1) if _LOSSY.search(column)]
        held = [i for i in range(len(columns) + 1) if i not in lossy] if lossy else [0]
        first = {setting[0]: setting for setting in reversed(fitting)}
        places = lossy or list(range(1, len(columns) + 1))
        fitting = [one for one in fitting if all(one[i] == first[one[0]][i] for i in places)]
    else:
        held = [i for i in range(len(columns) + 1) if len({one[i] for one in fitting}) > 1]
    bases: dict[tuple[str, ...], int] = {}
    for one in fitting:
        bases.setdefault(tuple(one[i] for i in held), rows.index(one))
    return [bases.get(tuple(row[i] for i in held)) for row in rows]
