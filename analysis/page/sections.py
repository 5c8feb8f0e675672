"""Tables of the page: what was swept, every point, memory, resources, failures, environment, caveats, definitions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.caveats import environment, is_restless
from analysis.columns import OK, POINT_KEY
from analysis.load import Sweep
from analysis.markdown import failed_points, measured, range_text
from analysis.metrics import DEFINITIONS
from analysis.naming import axes, format_value, short_names, variant_differences
from analysis.page.markup import esc, folded, rich, section, table
from analysis.plots import shown
from analysis.summary import numbers
from analysis.words import many

# Beyond this a table is for pandas, and a page of it is slow.
MAX_TABLE_ROWS = 500
_MIB = 2**-20

MEMORY = {
    "weights_bytes": "weights",
    "kv_cache_bytes": "KV cache",
    "peak_allocated_bytes": "peak allocated",
    "peak_reserved_bytes": "peak reserved",
    "peak_process_bytes": "peak process",
}
RESOURCES = {
    "energy_j": ("energy\nJ", 1.0, 1),
    "energy_per_output_token_j": ("energy\nmJ/tok", 1e3, 2),
    "cost_per_million_output_tokens": ("cost\nper 1M output tokens", 1.0, 4),
    "mbu_fraction": ("MBU\n% of measured peak", 100.0, 1),
    "mfu_fraction": ("MFU\n% of measured peak", 100.0, 1),
    "host_fraction": ("host\n% of step time", 100.0, 1),
    "step_run_mean_s": ("run a step\nms", 1e3, 3),
    "step_schedule_mean_s": ("schedule a step\nms", 1e3, 3),
}


def swept_line(sweep: Sweep, points: pd.DataFrame) -> str:
    """What was swept, in one line of HTML: each axis with its values, and how often."""
    firsts = sweep.runs.drop_duplicates(POINT_KEY)
    kept = axes(sweep)
    names = short_names(kept)
    parts = []
    for column in kept:
        texts = list(dict.fromkeys(format_value(value) for value in firsts[column]))
        shown = ", ".join(texts[:12]) + (f", … ({len(texts)} values)" if len(texts) > 12 else "")
        parts.append(f"<code>{esc(names[column])}</code>: {esc(shown)}")
    failed = int((points["num_repeats"] == 0).sum())
    repeats = points["num_repeats"] + points["num_failed"]
    each = f"{repeats.min()} to {repeats.max()}" if repeats.nunique() > 1 else str(repeats.max())
    noun = "repeat" if each == "1" else "repeats"
    counts = f"{many(len(points), 'point')} × {each} {noun}" + (f", {failed} failed" if failed else "")
    return f"<b>{counts}.</b> {' · '.join(parts) if parts else 'One configuration, nothing varied.'}"


def variants_section(sweep: Sweep) -> str:
    """Where each variant's config differs from what most variants have."""
    differences = variant_differences(sweep)
    if not differences:
        return ""
    rows = [
        (esc(name), ", ".join(f"<code>{esc(one)}</code>" for one in found) or "nothing")
        for name, found in differences.items()
    ]
    return section(
        "variants", "What each variant changes", table(("variant", "differs in"), rows, left=(0, 1), kind="facts")
    )


def points_section(points: pd.DataFrame) -> str:
    """All metrics of all points."""
    finished = points[points["num_repeats"] > 0]
    metrics = measured(finished)
    if finished.empty or not metrics:
        return ""
    head = ["point", "n", *(f"{metric.title}\n{metric.unit}" for metric in metrics)]
    rows = []
    for _, row in finished.head(MAX_TABLE_ROWS).iterrows():
        cells = [esc(row["label"]), str(row["num_repeats"])]
        for metric in metrics:
            spread = range_text(metric, row)
            hint = f' title="{esc(spread)}"' if spread else ""
            cells.append(f"<span{hint}>{metric.text(row[metric.column])}</span>")
        rows.append(cells)
    bases = [i for i, flag in enumerate(finished.head(MAX_TABLE_ROWS)["is_baseline"]) if flag]
    made = table(head, rows, kind="wide sortable", bold=bases[:1] if len(rows) > 1 else ())
    note = (
        "Means over n repeats, percentiles over their pooled requests; hold the pointer over a figure for its smallest "
        "and largest repeat, click a heading to sort."
    )
    if len(finished) > MAX_TABLE_ROWS:
        note += f" The first {MAX_TABLE_ROWS} of {len(finished)} points; `analysis.points` has all."
    return section("points", "All points", folded(many(len(finished), "point"), made) if len(rows) > 40 else made, note)


def memory_section(sweep: Sweep, points: pd.DataFrame) -> str:
    """The five kinds of memory, largest repeat of each point, as far as they were measured."""
    means = _by_point(sweep, list(MEMORY)).max()
    found = [column for column in MEMORY if column in means and means[column].notna().any()]
    if not found:
        return ""
    most = float(np.nanmax(means[found].to_numpy(dtype=float))) or 1.0
    rows = []
    for _, point in _interesting(points).iterrows():
        cells = [esc(point["label"])]
        for column in found:
            value = means[column].get((point["sweep"], point["point_id"]), np.nan)
            width = 0.0 if pd.isna(value) else 100 * value / most
            bar = f'<span class="meter"><i style="width:{width:.1f}%"></i></span>'
            cells.append("–" if pd.isna(value) else f"{value * _MIB:,.1f}{bar}")
        rows.append(cells)
    head = ["point", *(f"{MEMORY[column]}\nMiB" for column in found)]
    note = "The largest repeat. The five are no parts of a sum: the process holds the others."
    return section("memory", "Memory", table(head, rows), note + _some(points))


def resources_section(sweep: Sweep, points: pd.DataFrame) -> str:
    """Energy, cost, and how near to the machine's peaks, where measured."""
    means = _by_point(sweep, list(RESOURCES)).mean()
    found = [column for column in RESOURCES if column in means and means[column].notna().any()]
    if not found:
        return ""
    rows = []
    for _, point in _interesting(points).iterrows():
        cells = [esc(point["label"])]
        for column in found:
            _, scale, digits = RESOURCES[column]
            value = means[column].get((point["sweep"], point["point_id"]), np.nan)
            cells.append("–" if pd.isna(value) else f"{value * scale:,.{digits}f}")
        rows.append(cells)
    source = sweep.runs["energy_source"].dropna().unique()
    note = "Means over repeats."
    if len(source):
        known = "from" if "energy_j" in found else "not measured:"
        note += f" Energy {known} {'; '.join(str(text).removeprefix('none: ') for text in source[:3])}."
    return section(
        "resources", "Resources", table(["point", *(RESOURCES[c][0] for c in found)], rows), note + _some(points)
    )


def failed_section(sweep: Sweep) -> str:
    """What did not finish, and why."""
    found = failed_points(sweep)
    rows = [[esc(cell) for cell in row] for row in found[:MAX_TABLE_ROWS]]
    note = f"The first {MAX_TABLE_ROWS} of {len(found)}." if len(found) > MAX_TABLE_ROWS else ""
    made = table(("point", "repeat", "status", "reason"), rows, left=(0, 1, 2, 3)) if rows else ""
    return section("failed", "Failed points", made, note)


def caveats_section(lines: Sequence[str]) -> str:
    """Everything that speaks against believing the figures."""
    rows = "".join(f"<li>{rich(line)}</li>" for line in dict.fromkeys(lines))
    return section("caveats", "Caveats", f'<ul class="caveats">{rows}</ul>' if rows else "")


def environment_section(sweep: Sweep) -> str:
    """Every `env.*` and `design.*` that was recorded."""
    rows = []
    for prefix in ("env.", "design."):
        for name, counts in environment(sweep, prefix).items():
            if len(counts) == 1:
                value = esc(_short(next(iter(counts))))
            elif is_restless(name):
                values = pd.to_numeric(pd.Series(list(counts)), errors="coerce")
                both = (
                    f"{values.min():,.4g} to {values.max():,.4g}"
                    if values.notna().all()
                    else ", ".join(list(counts)[:8])
                )
                value = esc(both)
            else:
                listed = ", ".join(f"{value} ({many(count, 'run')})" for value, count in list(counts.items())[:8])
                value = f"<strong>differs</strong>: {esc(listed)}"
            rows.append((f"<code>{esc(prefix + name)}</code>", value))
    return section(
        "environment",
        "Environment and design",
        table(("what", "value"), rows, left=(0, 1), kind="facts") if rows else "",
    )


def _short(text: str) -> str:
    """A figure of many digits with five of them; anything else as it is."""
    if not re.fullmatch(r"-?\d+\.\d{4,}", text):
        return text
    value = float(text)
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.5g}"


def definitions_section(points: pd.DataFrame) -> str:
    """What the figures mean."""
    lines = dict(DEFINITIONS) | {m.title: m.definition for m in measured(points) if m.pooled is None}
    rows = [(f"<b>{esc(name)}</b>", esc(text)) for name, text in lines.items()]
    return section(
        "definitions", "Definitions", folded("What the figures mean", table(("figure", "is"), rows, left=(0, 1)))
    )


def _by_point(sweep: Sweep, columns: Sequence[str]) -> pd.core.groupby.DataFrameGroupBy:
    finished = sweep.runs[sweep.runs["status"] == OK]
    known = [column for column in columns if column in finished]
    return finished[POINT_KEY].assign(**{c: numbers(finished[c]) for c in known}).groupby(POINT_KEY, sort=False)


def _interesting(points: pd.DataFrame) -> pd.DataFrame:
    """All where they fit on a screen; else the baseline and the fastest."""
    finished = points[points["num_repeats"] > 0]
    return finished if len(finished) <= 24 else shown(points)


def _some(points: pd.DataFrame) -> str:
    finished = int((points["num_repeats"] > 0).sum())
    left = len(_interesting(points))
    return f" Shown: {left} of {finished} points, the baseline and the fastest." if left < finished else ""
