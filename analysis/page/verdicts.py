"""The first screen: what came out, as a sentence, and each ratio with its interval, its verdict and a bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.answer import TOLD, Verdicts
from analysis.direction import direction_of
from analysis.metrics import Metric
from analysis.naming import BASELINE
from analysis.page.forest import Forest, Row, forest
from analysis.page.markup import esc, folded, rich, section
from analysis.planning import LEVEL
from analysis.verdicts import NO_DIFFERENCE
from analysis.words import many, ratio_text

# What fits on a screen, with the baseline.
MAX_ROWS = 14
_EFFECTS = {"main": "Main effects", "interaction": "Two-way interactions"}


def first_screen(found: Sequence[Verdicts], sentences: Sequence[str]) -> str:
    """The verdict tables, one a metric of which one is seen, under the answer in words."""
    said = "".join(f"<p>{rich(line)}</p>" for line in sentences)
    said = f'<div class="answer">{said}</div>' if said else ""
    if not found:
        return said
    tabs = [
        f'<button type="button" data-tab="verdict-{i}" aria-selected="{"false" if i else "true"}">'
        f"{esc(one.metric.title)}</button>"
        for i, one in enumerate(found)
    ]
    bar = f'<div class="tabs" role="group" aria-label="metric">{"".join(tabs)}</div>' if len(found) > 1 else ""
    tables = [
        f'<div id="verdict-{i}" class="verdicts"{" hidden" if i else ""}>{_verdicts(one)}</div>'
        for i, one in enumerate(found)
    ]
    return f"{said}{bar}{''.join(tables)}"


def effects_section(changes: pd.DataFrame | None, metric: Metric, drawn: str) -> str:
    """Main effects and interactions of the knobs.

    Args:
        changes: from `analysis.answer.knob_effects`.
        metric: that they are of.
        drawn: the interaction plot.
    """
    if changes is None:
        return ""
    parts = [f"<h3>{plot.title}</h3>{forest(plot)}{_more(changes, plot)}" for plot in effect_plots(changes, metric)]
    note = (
        f"On {metric.heading.lower()}. A main effect is the ratio between two values of a knob over all settings of "
        "the others in which both were measured. An interaction is how much that ratio changes with the value of "
        "another knob: at 1 the two effects simply multiply."
    )
    return section("effects", "What each knob does", "".join(parts) + drawn, note)


def effect_plots(changes: pd.DataFrame | None, metric: Metric) -> list[Forest]:
    """Main effects and interactions, as far as there are any."""
    if changes is None:
        return []
    kinds = {kind: changes[changes["kind"] == kind] for kind in _EFFECTS}
    return [_effects(kind, _largest(rows), metric) for kind, rows in kinds.items() if len(rows)]


def verdict_plots(found: Verdicts) -> list[Forest]:
    """What there is room for on a screen; where that is not all, all of it too."""
    metric, table = found.metric, found.table
    chosen = _chosen(table)
    rows = []
    for base in dict.fromkeys(table["baseline"]):
        own = table[table["baseline"] == base]
        seen = own[own.index.isin(chosen)]
        if len(seen):
            rows.append(_base_row(base, own, metric))
            rows += [_row(row, found) for _, row in seen.iterrows()]
    plot = Forest(
        name=f"verdicts-{metric.column}",
        title=metric.heading,
        head=("point", f"{metric.title}\n{metric.unit}", "ratio\n95 % interval"),
        rows=tuple(rows),
        band=table.attrs["equal_within"] if _is_judged(table) else 0.0,
        floor=found.noise_floor,
    )
    if len(chosen) == len(table):
        return [plot]
    return [plot, replace(plot, name=f"{plot.name}-all", rows=tuple(_row(row, found) for _, row in table.iterrows()))]


def _is_judged(table: pd.DataFrame) -> bool:
    return bool(table["verdict"].isin(TOLD).any() or table["ratio_low"].notna().any())


def _verdicts(found: Verdicts) -> str:
    table = found.table
    plot, *everything = verdict_plots(found)
    notes = []
    better = {True: "Higher is better", False: "Lower is better", None: "Neither way is better"}[found.higher_is_better]
    notes.append(f"{better}.")
    if _is_judged(table):
        notes.append(f"Verdicts are at 5 % after Holm's correction; light band: equal within {100 * plot.band:g} %.")
    if not math.isnan(found.noise_floor):
        notes.append(f"Yellow band: noise floor of this machine, {100 * found.noise_floor:.1f} %, from A/A points.")
    if everything:
        notes.append(f"Shown are the {MAX_ROWS} of {len(table)} points that differ most from the baseline.")
    unsure = table[table["verdict"] == NO_DIFFERENCE]
    needed = unsure["repeats_needed"].dropna()
    if len(needed):
        least = f"about {needed.median():,.0f} repeats" if np.isfinite(needed.median()) else "more than 10,000 repeats"
        notes.append(
            f"“{NO_DIFFERENCE}” is not equality: telling a difference of {100 * table.attrs['effect']:g} % from noise "
            f"would take {least} at this spread."
        )
    rest = "".join(folded(f"All {many(len(table), 'comparison')}", forest(one)) for one in everything)
    return f'{forest(plot)}<p class="note">{esc(" ".join(notes))}</p>{rest}'


def _chosen(table: pd.DataFrame) -> pd.Index:
    """The rows that there is room for: those that differ most."""
    if len(table) <= MAX_ROWS:
        return table.index
    size = np.log(table["ratio"].where(table["ratio"] > 0)).abs().fillna(-1.0)
    return size.sort_values(ascending=False, kind="stable").index[:MAX_ROWS]


def _base_row(label: str, own: pd.DataFrame, metric: Metric) -> Row:
    # Where points lack repeats, what they are compared with differs: the mean over all is the most pairs'.
    mean = own.sort_values("num_pairs", ascending=False)["baseline_mean"].iloc[0]
    name = esc(label) if label == BASELINE else f"{esc(label)} <small>(baseline)</small>"
    cells = (name, metric.text(mean), "1×")
    return Row(cells=cells, ratio=1.0, base=True)


def _row(row: pd.Series, found: Verdicts) -> Row:
    text = ratio_text(row["ratio"], row["ratio_low"], row["ratio_high"])
    better = found.higher_is_better
    tone = "flat"
    if better is not None and row["verdict"] in TOLD:
        tone = "good" if (row["difference"] > 0) == better else "bad"
    return Row(
        cells=(esc(row["label"]), found.metric.text(row["mean"]), esc(text)),
        ratio=row["ratio"],
        low=row["ratio_low"],
        high=row["ratio_high"],
        tone=tone,
        verdict=row["verdict"],
    )


def _effects(kind: str, rows: pd.DataFrame, metric: Metric) -> Forest:
    better = direction_of(metric.column).higher_is_better
    made = []
    for _, row in rows.iterrows():
        what = f"<b>{esc(row['knob'])}</b> {esc(row['reference'])} → {esc(row['value'])}"
        if row["kind"] == "interaction":
            what += f" × <b>{esc(row['knob2'])}</b> {esc(row['reference2'])} → {esc(row['value2'])}"
        clear = row["p_holm"] < LEVEL
        tone = "flat" if not clear or better is None else "good" if (row["ratio"] > 1) == better else "bad"
        text = ratio_text(row["ratio"], row["low"], row["high"])
        cells = (what, f"{int(row['n'])} × {int(row['num_settings'])}", esc(text))
        word = _word(row, clear)
        made.append(Row(cells=cells, ratio=row["ratio"], low=row["low"], high=row["high"], tone=tone, verdict=word))
    return Forest(
        name=f"effects-{kind}",
        title=_EFFECTS[kind],
        head=("change", "n\nrepeats × settings", "ratio\n95 % interval"),
        rows=tuple(made),
        reference="value before the arrow",
    )


def _more(changes: pd.DataFrame, plot: Forest) -> str:
    kind = plot.name.removeprefix("effects-")
    left_out = int((changes["kind"] == kind).sum()) - len(plot.rows)
    return f'<p class="note">{many(left_out, "smaller one")} not shown.</p>' if left_out else ""


def _word(row: pd.Series, clear: bool) -> str:
    if math.isnan(row["p_holm"]):
        return "one repeat"
    p = "p < 0.001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}"
    return p if clear else f"not shown ({p})"


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    order = np.log(rows["ratio"].astype(float)).abs().sort_values(ascending=False, kind="stable").index
    return rows.loc[order[:MAX_ROWS]] if len(rows) > MAX_ROWS else rows
