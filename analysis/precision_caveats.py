"""What a reader must know before believing a table of precisions, one sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis.baseline import PointKey
from analysis.columns import OK, POINT_KEY
from analysis.load import Sweep
from analysis.machine_caveats import column_of
from analysis.precision_rows import Row, Rows, rows_of
from analysis.quality_figures import Quality, has_quality, num_unlike, perplexity, quality_of
from analysis.summary import numbers

# Fewer tell perplexities apart that differ by percents, and no less.
FEW_TOKENS = 2000
# Quality that depends on the batch size by less than this is told by none of the figures shown.
_SAME = 1e-3
_ASKED = "`quality.enabled=true` measures it everywhere"
_MAX_NAMED = 6


def quality_caveats(sweep: Sweep) -> list[str]:
    """Of a sweep as its report has it, each precision against the usual baseline."""
    if not has_quality(sweep):
        return []
    rows = rows_of(sweep)
    return caveats_of(sweep, rows, quality_of(sweep, [row.points for row in rows.rows]))


def caveats_of(sweep: Sweep, rows: Rows, quality: Sequence[Quality]) -> list[str]:
    """Of precisions; none where no quality was measured.

    Args:
        sweep: from `analysis.load`.
        rows: its precisions.
        quality: of each.
    """
    made: list[str] = []
    if not any(one.is_measured for one in quality):
        return made
    measured = [one.is_measured for one in quality]
    based = [(row, own) for row, own in zip(rows.rows, quality, strict=True) if own.is_measured]
    without = list(dict.fromkeys(_base_label(row, rows) for row, _ in based if not _has_base(row, quality)))
    lacking = [row.label for row, known in zip(rows.rows, measured, strict=True) if not known]
    lacking = [label for label in lacking if label not in without]
    if without:
        made.append(
            f"No perplexity of {_some(without)}, which others are compared with, so there are no ratios to it: the "
            f"first repeat did not finish, or quality was not asked for ({_ASKED})."
        )
    if lacking:
        made.append(
            f"No quality of {_some(lacking)}: the first repeat did not finish, or quality was not asked for ({_ASKED})."
        )
    short = [one.num_tokens for one in quality if 0 < one.num_tokens < FEW_TOKENS]
    if short:
        made.append(
            f"Quality of {len(short)} of {sum(measured)} measured precisions rests on {min(short):,} tokens of text, "
            f"under {FEW_TOKENS:,}: small differences do not show."
        )
    unlike = [
        row.label for row, own in based if row.base is not None and own.items and num_unlike(own, quality[row.base])
    ]
    if unlike:
        made.append(
            f"Not measured on the same items as what it is compared with: {_some(unlike)}; ratios and differences are "
            "over those that both have."
        )
    return made + _unsteady(sweep, rows, quality)


def _has_base(row: Row, quality: Sequence[Quality]) -> bool:
    return row.base is not None and not math.isnan(perplexity(quality[row.base], None).alone.value)


def _base_label(row: Row, rows: Rows) -> str:
    return "a baseline" if row.base is None else rows.rows[row.base].label


def _unsteady(sweep: Sweep, rows: Rows, quality: Sequence[Quality]) -> list[str]:
    """Precisions whose quality depends on the batch size, or on the repeat."""
    finished = sweep.runs[sweep.runs["status"] == OK]
    values = numbers(column_of(finished, "perplexity"))
    by_point: dict[PointKey, pd.Series] = dict(list(values.groupby([finished[key] for key in POINT_KEY])))
    made = []
    for row, own in zip(rows.rows, quality, strict=True):
        found = pd.concat([by_point[key] for key in row.points.values() if key in by_point] or [values[:0]]).dropna()
        if len(found) > 1 and found.max() > (1 + _SAME) * found.min():
            where = f"; shown is that at {rows.name} {own.size:g}" if own.size is not None else ""
            made.append(
                f"Quality of {row.label} is not the same in all its runs (perplexity {found.min():.4g} to "
                f"{found.max():.4g}){where}."
            )
    return made


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MAX_NAMED} more" if len(labels) > _MAX_NAMED else ""
    return "; ".join(labels[:_MAX_NAMED]) + more
