"""The tables of policies as cells, for the page, the Markdown and the terminal: who wins where, all figures under one
load, capacities, and how true a simulation is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.metrics import Metric
from analysis.precision_table import STAR, Cell, Column
from analysis.scheduling_fidelity import COMPARED
from analysis.scheduling_metrics import FAIRNESS_METRICS, LATENCY_METRICS, LOAD_METRICS
from analysis.scheduling_winners import JUDGED
from analysis.schedulings import at_chosen, load_text
from analysis.words import many, ratio_text

SCHEDULING = "Scheduling"
# Beside an error beyond what is tolerated.
OFF = "≠"
# More is read by nobody; the functions of `analysis` have all.
MAX_TABLES = 6
MAX_ROWS = 24
_MAX_NAMED = 2
# A table of all figures is wider than a page.
_GROUPS = {
    "All policies, latency": [metric for pair in LATENCY_METRICS for metric in pair],
    "All policies, throughput and fairness": [*LOAD_METRICS, *FAIRNESS_METRICS],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulingTable:
    """One table.

    Args:
        title: over it.
        what: its rows are.
        labels: one a row.
        columns: those of which anything is known.
        is_detail: all figures, for who asks; the page folds it.
    """

    title: str
    what: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    is_detail: bool = False


def winner_tables(frame: pd.DataFrame, found: pd.DataFrame) -> list[SchedulingTable]:
    """Of each setting the best policy by each metric, a row a load.

    Args:
        frame: from `analysis.scheduling`.
        found: from `analysis.winners`.
    """
    made = []
    for setting, group in found.groupby("setting", sort=False):
        loads = sorted(group["load"].drop_duplicates(), key=lambda load: (math.isnan(load), load))[:MAX_ROWS]
        columns = []
        for rank, metric in enumerate(JUDGED):
            own = group[group["metric"] == metric.column]
            if len(own):
                cells = [_winner(_at(own, load), metric) for load in loads]
                columns.append(Column(title=metric.title, unit=metric.unit, cells=tuple(cells), rank=rank))
        labels = tuple("all" if math.isnan(load) else f"{load:g}" for load in loads)
        title = f"Who wins: {setting}" if setting else "Who wins"
        made.append(
            SchedulingTable(title=title, what=frame.attrs["load_name"] or "load", labels=labels, columns=tuple(columns))
        )
    return made[:MAX_TABLES]


def _at(rows: pd.DataFrame, load: float) -> pd.Series | None:
    found = rows[rows["load"].isna()] if math.isnan(load) else rows[rows["load"] == load]
    return None if found.empty else found.iloc[0]


def _winner(row: pd.Series | None, metric: Metric) -> Cell:
    if row is None:
        return Cell(text="–")
    figure = f"{metric.text(row['mean'])} {metric.unit}".strip()
    alike = row["alike"]
    if row["is_told"]:
        ratio = ratio_text(row["ratio"], row["ratio_low"], row["ratio_high"])
        against = () if ratio == "–" else (f"{ratio.split(' ')[0]} {row['runner_up']}",)
        return Cell(text=row["best"], small=(figure, *against), is_best=True)
    if row["is_told"] is None:
        return Cell(text=row["best"], small=(figure, "too few repeats"))
    if len(alike) + 1 == row["num_policies"]:
        return Cell(text="no difference", small=(f"seen best: {row['best']}", figure))
    more = (f"+{len(alike) - _MAX_NAMED} more",) if len(alike) > _MAX_NAMED else ()
    return Cell(text=row["best"], small=(figure, f"or {', '.join(alike[:_MAX_NAMED])}", *more))


def figure_tables(frame: pd.DataFrame, found: pd.DataFrame) -> list[SchedulingTable]:
    """Of each setting every policy under its chosen load; the best that was told from all others is starred."""
    made = []
    for setting, load, rows in at_chosen(frame):
        if len(rows) < 2:
            continue
        rows = rows[rows["num_repeats"] > 0].head(MAX_ROWS)
        told = found[(found["setting"] == setting) & found["is_told"].eq(True)]
        told = told[told["load"].isna() if math.isnan(load) else told["load"] == load]
        stars = dict(zip(told["metric"], told["best"], strict=True))
        at = ", ".join(part for part in (setting, load_text(frame, load)) if part)
        for what, metrics in _GROUPS.items():
            columns = []
            for rank, metric in enumerate(metrics):
                if metric.column in rows and rows[metric.column].notna().any():
                    best = stars.get(metric.column)
                    cells = [_figure(row, metric, is_best=best == row["policy"]) for _, row in rows.iterrows()]
                    columns.append(Column(title=metric.title, unit=metric.unit, cells=tuple(cells), rank=rank))
            if columns:
                title, labels = f"{what}: {at}" if at else what, tuple(rows["policy"])
                cells_of = tuple(columns)
                made.append(
                    SchedulingTable(title=title, what="policy", labels=labels, columns=cells_of, is_detail=True)
                )
    return made[: 2 * MAX_TABLES]


def _figure(row: pd.Series, metric: Metric, *, is_best: bool) -> Cell:
    low, high = row[f"{metric.column}_low"], row[f"{metric.column}_high"]
    # No figure of these is below 0, whatever a symmetric interval says.
    ends = () if math.isnan(low) or low == high else (f"{metric.text(max(0.0, low))} to {metric.text(high)}",)
    return Cell(text=metric.text(row[metric.column]), small=ends, is_best=is_best)


def capacity_table(capacities: pd.DataFrame) -> SchedulingTable | None:
    """None where no capacity was looked for."""
    if capacities.empty:
        return None
    rows = capacities.head(MAX_ROWS)
    best = rows["capacity_rps"].max()

    def figure(value: float, text: str) -> str:
        return "–" if math.isnan(value) else text.format(value)

    columns = (
        Column(
            title="capacity",
            unit="req/s",
            cells=tuple(Cell(text=figure(rate, "{:.3g}"), is_best=rate == best) for rate in rows["capacity_rps"]),
            rank=0,
        ),
        Column(
            title="SLO met",
            unit="% there",
            cells=tuple(Cell(text=figure(100 * share, "{:.1f}")) for share in rows["attainment"]),
            rank=1,
        ),
        Column(
            title="fails at",
            unit="req/s",
            cells=tuple(Cell(text=figure(rate, "{:.3g}")) for rate in rows["over_rps"]),
            rank=2,
        ),
        Column(title="tried", unit="rates", cells=tuple(Cell(text=f"{n:.0f}") for n in rows["num_tried"]), rank=3),
    )
    labels = tuple(str(label) for label in rows["label"])
    return SchedulingTable(title="Capacity within the SLO", what="point", labels=labels, columns=columns)


def fidelity_tables(errors: pd.DataFrame, frame: pd.DataFrame) -> list[SchedulingTable]:
    """Errors of the simulation by policy and load, then its rankings by metric."""
    if errors.empty:
        return []
    cases = errors[["rest", "load", "policy"]].drop_duplicates().head(MAX_ROWS)
    labels = [
        ", ".join(part for part in (case.policy, case.rest, load_text(frame, case.load)) if part)
        for case in cases.itertuples()
    ]
    places = pd.MultiIndex.from_frame(errors[["rest", "load", "policy"]])
    columns = []
    for rank, metric in enumerate(COMPARED):
        own = errors[errors["metric"] == metric.column]
        by_case = {key: row for key, (_, row) in zip(places[own.index], own.iterrows(), strict=True)}
        cells = [_error(by_case.get(key)) for key in pd.MultiIndex.from_frame(cases)]
        columns.append(Column(title=metric.title, unit="% off", cells=tuple(cells), rank=rank))
    made = [SchedulingTable(title="Simulated against real", what="case", labels=tuple(labels), columns=tuple(columns))]
    ranking = errors.attrs["ranking"]
    if len(ranking):
        titles = {metric.column: metric.title for metric in COMPARED}
        groups = [(titles[str(name)], group) for name, group in ranking.groupby("metric", sort=False)]
        sums = [(int(group["num_told"].sum()), int(group["num_agreeing"].sum())) for _, group in groups]
        columns = [
            _column("Spearman", "least", [_least(group["spearman"]) for _, group in groups], 0),
            _column("Kendall", "least", [_least(group["kendall"]) for _, group in groups], 1),
            _column("pairs told apart", "by real runs", [str(told) for told, _ in sums], 2),
            _column("ordered alike", "of them", [str(alike) for _, alike in sums], 3),
        ]
        labels = [title for title, _ in groups]
        title = "Ranking of policies, simulated against real"
        made.append(SchedulingTable(title=title, what="metric", labels=tuple(labels), columns=tuple(columns)))
    return made


def _column(title: str, unit: str, texts: Sequence[str], rank: int) -> Column:
    return Column(title=title, unit=unit, cells=tuple(Cell(text=text) for text in texts), rank=rank)


def _least(values: pd.Series) -> str:
    return "–" if values.isna().all() else f"{values.min():.2f}"


def _error(row: pd.Series | None) -> Cell:
    if row is None or math.isnan(row["error"]):
        return Cell(text="–")
    text = f"{100 * row['error']:+.1f}" + ("" if row["is_within"] else f" {OFF}")
    low, high = row["error_low"], row["error_high"]
    return Cell(text=text, small=() if math.isnan(low) else (f"{100 * low:+.1f} to {100 * high:+.1f}",))


def notes_of(frame: pd.DataFrame, errors: pd.DataFrame) -> list[str]:
    """How to read them."""
    made = [
        f"Who wins: the policy of the best mean over repeats; {STAR}: told from every other (paired by repeat, p under "
        "0.05 after Holm over the policies of the cell, beyond 1 %), with its ratio to the next; otherwise those that "
        "the data cannot tell from it. Each cell is a question of its own: of many, some stars are chance. A p99 is "
        "each run's own, and its mean over repeats is shown.",
    ]
    if frame["load"].notna().any():
        made.append(
            "All policies, distributions, fairness and lanes: under the highest load that most policies keep up with "
            "(95 % of the offered rate served), or the middle one where that is not known."
        )
    if len(errors):
        num_off = int(errors["is_within"].eq(False).sum())
        made.append(
            f"{OFF}: more than 5 % off in a mean or 10 % in a p90; {num_off} of {many(len(errors), 'figure')}. "
            "Below each error its 95 % interval over repeats, which have the same requests in both lives."
        )
    return made
