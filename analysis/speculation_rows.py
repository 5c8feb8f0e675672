"""Which points of a sweep draft, and which point without drafts each is compared with.

A row is a point with a drafter. Its setting is all that was varied beside speculation: the workload, the batch size,
any other knob. It is compared with the point of the same setting in which speculation is off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.baseline import PointKey
from analysis.columns import POINT_KEY
from analysis.load import Sweep
from analysis.naming import VARIANT, axes, format_value, is_config, label_of, short_names, varying
from analysis.precision_rows import batch_column, batch_name
from analysis.summary import numbers

_TARGET = "cfg.speculation._target_"
_DRAFTS = "cfg.speculation.num_draft_tokens"
_LENGTH = "cfg.draft_length._target_"
# A variant is a name for what it sets.
_OWN = re.compile(rf"^({re.escape(VARIANT)}$|cfg\.speculation(\.|$)|cfg\.draft_length(\.|$))")
# What is no part of who drafts.
_NOT_WHO = ("num_draft_tokens", "sample_drafts", "_target_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One point that drafts.

    Args:
        key: of the point.
        base: of the one without drafts, None where there is none.
        setting: all that was varied beside speculation, as a label; empty where nothing was.
        rest: the same without the batch size.
        batch: its batch size, None in a sweep that has one.
        label: what sets it apart in its setting.
        drafter: who drafts, however many: rows of the same drafter accept alike at the same position.
        k: most drafts of a request in a step; None where it was not recorded.
        draft_length: the policy that chooses how many, by its short name.
    """

    key: PointKey
    base: PointKey | None
    setting: str
    rest: str
    batch: float | None
    label: str
    drafter: str
    k: int | None
    draft_length: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """All points that draft, in the order in which they first ran.

    Args:
        rows: of them.
        batch_name: of the batch size, for people; empty where none was varied.
    """

    rows: tuple[Row, ...]
    batch_name: str


def has_speculation(sweep: Sweep) -> bool:
    """Whether any point drafts."""
    return _TARGET in sweep.runs and bool(sweep.runs[_TARGET].notna().any())


def rows_of(sweep: Sweep) -> Rows:
    """Find them, and pair each with the point without drafts."""
    if not has_speculation(sweep):
        return Rows(rows=(), batch_name="")
    points = sweep.runs.drop_duplicates(POINT_KEY).set_index(POINT_KEY, drop=False)
    batch = batch_column(sweep)
    kept = axes(sweep)
    own = [column for column in kept if _OWN.match(column)]
    shared = [column for column in kept if column not in own]
    # All that differs, and not only what labels are made of: an axis may hide behind a variant.
    held = [column for column in varying(sweep) if not _OWN.match(column)]
    contexts = {key: (key[0], *(format_value(row[c]) for c in held)) for key, row in points.iterrows()}
    drafts = points[_TARGET].notna()
    plain: dict[tuple[str, ...], PointKey] = {}
    for key in points.index[~drafts]:
        plain.setdefault(contexts[key], key)
    names = short_names(kept)
    several = points["sweep"].nunique() > 1
    who = _drafters(points[drafts])

    def setting(row: pd.Series, columns: Sequence[str]) -> str:
        label = label_of(row, columns, names, with_nulls=True)
        return f"{row['sweep']}: {label}".removesuffix(": ") if several else label

    made = []
    for key, row in points[drafts].iterrows():
        number = None if _DRAFTS not in row or pd.isna(row[_DRAFTS]) else int(row[_DRAFTS])
        made.append(
            Row(
                key=key,
                base=plain.get(contexts[key]),
                setting=setting(row, shared),
                rest=setting(row, [column for column in shared if column != batch]),
                batch=None if batch is None else float(numbers(points[batch])[key]),
                label=label_of(row, own, names, with_nulls=False) or who[key],
                drafter=who[key],
                k=number,
                draft_length=format_value(row[_LENGTH]) if _LENGTH in row else "",
            )
        )
    return Rows(rows=tuple(made), batch_name=batch_name(batch))


def _drafters(points: pd.DataFrame) -> dict[PointKey, str]:
    """Of each point who drafts: `early_exit exit_layer=3`, with what differs between drafters of its kind."""
    kinds = points[_TARGET].map(format_value)
    made: dict[PointKey, str] = {}
    options = [c for c in points.columns if c.startswith("cfg.speculation.") and c.rpartition(".")[2] not in _NOT_WHO]
    for kind, group in points.groupby(kinds, sort=False):
        telling = [c for c in options if is_config(c) and group[c].map(format_value).nunique() > 1]
        for key, row in group.iterrows():
            words = [_option(column.rpartition(".")[2], row[column]) for column in telling]
            made[key] = " ".join([str(kind), *(word for word in words if word)])
    return made


def _option(name: str, value: object) -> str:
    """One word of it: a switch by its name, a tree by its size."""
    text = format_value(value)
    if name == "tree":
        nodes = None if text == "null" else json.loads(text)
        if nodes is None:
            return "chain"
        # As paths, or as widths.
        return f"tree of {len(nodes)}" if isinstance(nodes[0], list) else f"tree {'x'.join(map(str, nodes))}"
    if text in ("true", "false"):
        return name if text == "true" else ""
    return f"{name}={text}"
