"""Which point a user means by `quantization=none` or `scheduler=fcfs,cache.block_size=16`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.columns import POINT_KEY
from analysis.load import Sweep
from analysis.naming import BASELINE, VARIANT, axes, format_value, labels, short_names, varying

Spec = str | Mapping[str, Any] | None
PointKey = tuple[str, str]
MAX_CHOICES = 12


def knobs(sweep: Sweep) -> dict[str, str]:
    """Names that a user may type, and the column of `runs` that each means: whole keys (`cache.block_size`), and the
    short names of tables and plots (`block_size`) of what varies."""
    names = {column.removeprefix("cfg."): column for column in sweep.runs.columns if column.startswith("cfg.")}
    for column, name in short_names(varying(sweep)).items():
        names.setdefault(name, column)
    # What tables show goes first: `scheduler` is the policy, whatever column tells it.
    return names | {name: column for column, name in short_names(axes(sweep)).items()}


def knob_column(sweep: Sweep, name: str, what: str) -> str:
    """The column that one name means.

    Args:
        name: as in `knobs`, with or without `cfg.`, or the unmistakable ending of one.
        what: the option that it was given for, named in errors.

    Raises:
        ValueError: it means none, or several.
    """
    if name == "sweep":
        return "sweep"
    known = knobs(sweep)
    plain = name.removeprefix("cfg.")
    if plain in known:
        return known[plain]
    endings = {column for key, column in known.items() if key.endswith(f".{plain}")}
    if len(endings) == 1:
        return endings.pop()
    swept = ", ".join(short_names(axes(sweep)).values()) or "nothing"
    means = f"means several ({', '.join(sorted(endings))})" if endings else "no such knob"
    raise ValueError(f"{what}: {name!r}: {means}; this sweep varies {swept}")


def baselines(sweep: Sweep, spec: Spec, within: Sequence[str] = ()) -> dict[PointKey, PointKey]:
    """Each point's baseline, both by (sweep, point_id).

    Args:
        spec: `knob=value,knob=value`, a mapping of the same, or the label of a point; None is the variant `baseline`,
            or the first point of a sweep without variants.
        within: knobs to hold fixed: each setting of them has a baseline of its own.

    Raises:
        ValueError: no point fits, or several (in one setting of `within`), with the choices.
    """
    firsts = sweep.runs.drop_duplicates(POINT_KEY).set_index(POINT_KEY, drop=False)
    held = [knob_column(sweep, name, f"within={','.join(within)}") for name in within]
    settings = {key: tuple(format_value(row[column]) for column in held) for key, row in firsts.iterrows()}
    fitting = fitting_points(sweep, spec)
    if spec is None and not _has_variants(firsts):
        # The first of each setting.
        fitting = list({settings[key]: key for key in reversed(fitting)}.values())
    shown = f"baseline={_text(spec)}"
    made: dict[tuple[str, ...], PointKey] = {}
    for key in fitting:
        if settings[key] in made:
            several = labels(sweep).loc[[k for k in fitting if settings[k] == settings[key]]]
            hint = "add a knob to tell them apart, or compare each within a setting of the others (within=...)"
            raise ValueError(f"{shown}: fits {len(several)} points ({_choices(several)}); {hint}")
        made[settings[key]] = key
    lacking = [key for key in firsts.index if settings[key] not in made]
    if lacking:
        named = _choices(labels(sweep).loc[lacking])
        raise ValueError(f"{shown}: fits no point of the same {', '.join(within)} as {named}")
    return {key: made[settings[key]] for key in firsts.index}


def fitting_points(sweep: Sweep, spec: Spec) -> list[PointKey]:
    """The points that a spec fits, in the order in which they first ran; None fits those of the variant `baseline`, or
    all where there is no such variant.

    Raises:
        ValueError: it fits none.
    """
    firsts = sweep.runs.drop_duplicates(POINT_KEY).set_index(POINT_KEY, drop=False)
    fitting = _fitting(sweep, firsts, spec)
    if not fitting:
        raise ValueError(f"baseline={_text(spec)}: fits no point; there are {_choices(labels(sweep))}")
    return fitting


def _fitting(sweep: Sweep, firsts: pd.DataFrame, spec: Spec) -> list[PointKey]:
    if spec is None:
        return list(firsts.index[firsts[VARIANT] == BASELINE] if _has_variants(firsts) else firsts.index)
    if isinstance(spec, str) and "=" not in spec:
        names = labels(sweep)
        by_name = [key for key in firsts.index if spec in (names[key], key[1])]
        if by_name or VARIANT not in firsts:
            return by_name
        return [key for key in firsts.index if format_value(firsts.at[key, VARIANT]) == spec]
    wanted = _parsed(spec) if isinstance(spec, str) else dict(spec)
    columns = {knob_column(sweep, name, f"baseline={_text(spec)}"): value for name, value in wanted.items()}
    return [key for key, row in firsts.iterrows() if all(_same(row[c], value) for c, value in columns.items())]


def _has_variants(firsts: pd.DataFrame) -> bool:
    return VARIANT in firsts and bool((firsts[VARIANT] == BASELINE).any())


def _parsed(spec: str) -> dict[str, str]:
    made = {}
    # A value may be a list: only a comma before another `knob=` ends it.
    for part in re.split(r",(?=\s*[\w.]+\s*=)", spec):
        name, _, value = part.partition("=")
        if not name.strip():
            raise ValueError(f"baseline={spec}: must be knob=value,knob=value or a point's label")
        made[name.strip()] = value.strip()
    return made


def _same(value: Any, wanted: Any) -> bool:
    texts = wanted if isinstance(wanted, str) else format_value(wanted)
    if texts in (format_value(value), str(value)) or texts.lower() == format_value(value):
        return True
    try:
        return not isinstance(value, bool) and float(value) == float(texts)
    except (TypeError, ValueError):
        return False


def _text(spec: Spec) -> str:
    if isinstance(spec, Mapping):
        return ",".join(f"{name}={format_value(value)}" for name, value in spec.items())
    return str(spec)


def _choices(names: pd.Series) -> str:
    more = f" and {len(names) - MAX_CHOICES} more" if len(names) > MAX_CHOICES else ""
    return "; ".join(names.iloc[:MAX_CHOICES]) + more
