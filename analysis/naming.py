"""What a sweep varied, and a short name for each of its points.

Configs are wide (fifty columns) and a sweep varies two or three of them, sometimes with followers: another scheduler
brings other options. The *axes* are what is left when followers are dropped, and a point's label is its values on
the axes: `scheduler=static, block_size=32`. Where a sweep names its points itself (`cfg.variant`), that name is first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import POINT_KEY, RUN_KEY
from analysis.load import Sweep

VARIANT = "cfg.variant"
BASELINE = "baseline"

# Which repeat it is, what the sweep planned, where things are written and mirrored: no part of what a point is.
_NOT_OF_A_POINT = re.compile(r"^cfg\.(repeats?|axes|variants|sweep|tracking|paths?|hydra)(\.|$)")
_COMPONENT = re.compile(r"(\._?target_?|\.name|\._name_)$")


def varying(sweep: Sweep) -> list[str]:
    """The cfg.* columns that differ between points, in the order of the files; null counts as a value.

    A column that differs between repeats of one point (a seed) is no axis.
    """
    runs = sweep.runs
    groups = runs.groupby(POINT_KEY, sort=False, dropna=False).ngroup().to_numpy()
    found = []
    for column in runs.columns:
        if is_config(column):
            values = codes(runs[column])
            constant_within = len(set(zip(groups, values, strict=True))) == len(set(groups))
            if constant_within and len(set(values)) > 1:
                found.append(column)
    return found


def axes(sweep: Sweep) -> list[str]:
    """The varying columns without followers: a column whose value an axis of its own group determines is left out.

    `cfg.variant` comes first, and determines whatever it determines; then choices of members (`cfg.scheduler`) and of
    classes, which bring options along; then the rest as in the files.
    """
    columns = varying(sweep)
    values = {column: codes(sweep.runs[column]) for column in columns}
    kept: list[str] = []
    for column in sorted(
        columns, key=lambda c: (c != VARIANT, "." in c.removeprefix("cfg."), not _COMPONENT.search(c))
    ):
        leaders = [axis for axis in kept if axis == VARIANT or _key_path(axis)[0] == _key_path(column)[0]]
        if not any(determines(values[axis], values[column]) for axis in leaders):
            kept.append(column)
    return kept


def labels(sweep: Sweep) -> pd.Series:
    """A short, unique label a point, indexed by (sweep, point_id), in the order in which points first ran."""
    points = sweep.runs.drop_duplicates(POINT_KEY).set_index(POINT_KEY)
    columns = axes(sweep)
    names = short_names(columns)
    brief = [label_of(row, columns, names, with_nulls=False) for _, row in points.iterrows()]
    whole = [label_of(row, columns, names, with_nulls=True) for _, row in points.iterrows()]
    made = [b if b and brief.count(b) == 1 else w for b, w in zip(brief, whole, strict=True)]
    if len(sweep.folders) > 1:
        made = [f"{name}: {label}" if label else name for (name, _), label in zip(points.index, made, strict=True)]
    elif len(points) == 1:
        variant = points[VARIANT].iloc[0] if VARIANT in points else None
        made = [points.index[0][0] if _is_null(variant) else str(variant)]
    # Points that differ in nothing that a label shows still need names of their own.
    made = [
        label if label and made.count(label) == 1 else f"{label} {point_id}".strip()
        for label, (_, point_id) in zip(made, points.index, strict=True)
    ]
    return pd.Series(made, index=points.index, name="label", dtype="object")


def attach(sweep: Sweep, table: pd.DataFrame, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Give rows of requests, steps or quality the label, point_id, repeat and config of their run.

    Args:
        table: `sweep.requests`, `sweep.steps`, `sweep.quality`, or part of one.
        columns: columns of runs to add; the varying ones where none are named.

    Returns:
        The table with these columns more. Rows of runs that are not in `sweep.runs` are left out.
    """
    wanted = list(dict.fromkeys(["point_id", "repeat", *(columns or varying(sweep))]))
    runs = sweep.runs.drop_duplicates(RUN_KEY)[[*RUN_KEY, *(c for c in wanted if c not in RUN_KEY)]]
    joined = table.merge(runs, on=RUN_KEY, how="inner")
    return joined.merge(labels(sweep).reset_index(), on=POINT_KEY, how="left")


def short_names(columns: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each column's name that tells it from the others: `cfg.cache.block_size` is `block_size`.
    A component's import path goes by its group: `cfg.scheduler.policy._target_` is `scheduler`."""
    paths = {column: _key_path(column) for column in columns}
    names = {}
    for column, path in paths.items():
        others = [other for c, other in paths.items() if c != column]
        is_choice = len(path) == 1 or _COMPONENT.search(column)
        if is_choice and not any(other in (path, path[:1]) for other in others):
            names[column] = path[0]
            continue
        ends = (path[-n:] for n in range(1, len(path) + 1))
        unique = next((end for end in ends if all(other[-len(end) :] != end for other in others)), None)
        names[column] = ".".join(unique) if unique else column.removeprefix("cfg.")
    return names


def format_value(value: Any) -> str:
    """As one would type it on the command line: `true`, `null`, `0.5`, and a component by its short name."""
    if _is_null(value):
        return "null"
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        return f"{value:g}"
    if isinstance(value, (list, tuple, dict, np.ndarray)):
        return json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v))
    return _component_name(str(value))


def is_config(column: str) -> bool:
    """Whether a column of `runs` is part of what a point is: of its config, and not of where results go."""
    return column.startswith("cfg.") and not _NOT_OF_A_POINT.match(column)


def codes(column: pd.Series) -> list[int]:
    """Equal values get equal numbers, whatever they are: lists and nulls too."""
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_integer_dtype(column) or column.dtype == "str":
        # Of one kind, so that equal values need no text to be told by.
        found: list[int] = pd.factorize(column, use_na_sentinel=False)[0].tolist()
        return found
    numbers: dict[str, int] = {}
    return [numbers.setdefault("null" if _is_null(v) else f"={format_value(v)}|{v}", len(numbers)) for v in column]


def label_of(row: pd.Series, columns: Sequence[str], names: dict[str, str], *, with_nulls: bool) -> str:
    """`scheduler=static, block_size=32`: a point by its values of these columns, a variant by its name alone.

    Args:
        row: of `runs`.
        columns: that matter.
        names: short ones, from `short_names`.
        with_nulls: knobs that are null are named too.
    """
    parts = []
    for column in columns:
        value = row[column]
        if _is_null(value) and (not with_nulls or column == VARIANT):
            continue
        parts.append(format_value(value) if column == VARIANT else f"{names[column]}={format_value(value)}")
    return ", ".join(parts)


def determines(axis: Sequence[int], column: Sequence[int]) -> bool:
    """Whether whoever knows the one value knows the other; both as `codes`."""
    return len(set(zip(axis, column, strict=True))) == len(set(axis))


def _component_name(text: str) -> str:
    """`minivllm.scheduler.static.StaticBatching` is `static`: a component's module is named like its config. Where the
    class is not named after its module (one of a user's own), the class's name says more."""
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts) or not parts[-1][0].isupper():
        return text
    module, name = parts[-2], parts[-1]
    return module if name.lower().startswith(module.replace("_", "").lower()) else name


def _key_path(column: str) -> list[str]:
    path = column.removeprefix("cfg.").split(".")
    return path[:-1] if len(path) > 1 and _COMPONENT.search(column) else path


def _is_null(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and bool(np.isnan(value)))


def variant_differences(sweep: Sweep) -> dict[str, list[str]]:
    """Each variant, and where its config differs from what most variants have, as `key=value`; none without variants.

    A knob that a variant does not have, or leaves unset, is named only where nothing else is; nor is the class of a
    member that is named itself.
    """
    kept = axes(sweep)
    followers = [column for column in varying(sweep) if column not in kept]
    if VARIANT not in kept or not followers:
        return {}
    firsts = sweep.runs.drop_duplicates(VARIANT)
    shown = {column: firsts[column].map(format_value) for column in followers}
    usual = {column: values.mode().iloc[0] for column, values in shown.items()}
    found = {}
    for place, variant in firsts[VARIANT].items():
        differing = [column for column, values in shown.items() if values[place] != usual[column]]
        telling = [
            column
            for column in differing
            if not pd.isna(firsts[column][place])
            and not (column.endswith("._target_") and column.removesuffix("._target_") in differing)
        ]
        found[format_value(variant)] = [
            f"{column.removeprefix('cfg.')}={shown[column][place]}" for column in telling or differing
        ]
    return found
