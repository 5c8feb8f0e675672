"""`minivllm report FOLDER --terminal`: the report for people on ssh. Nothing is written; plots are lines of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.answer import Answer, answer
from analysis.caveats import caveats
from analysis.columns import OK, RUN_KEY
from analysis.comparison_table import print_comparison
from analysis.load import Sweep, load
from analysis.markdown import failed_points
from analysis.naming import attach
from analysis.plots import shown
from analysis.precision_table import PRECISIONS, STAR, Column, table_of
from analysis.report import default_console, print_table
from analysis.scheduling_answer import Scheduling
from analysis.scheduling_table import SCHEDULING
from analysis.speculation_table import OFF, SPECULATION, notes_of, tables_of
from analysis.style import wrap
from analysis.summary import measured_requests, numbers, points
from analysis.words import ratio_text

BLOCKS = "▁▂▃▄▅▆▇█"
# For terminals that know no more than ASCII.
PLAIN = "_.-=+*%#"
_ASCII = str.maketrans({STAR: "*", OFF: "!=", "→": "->", "Σ": "sum ", "−": "-"})
_WIDEST = 24
_LABEL_WIDTH = 40
_MAX_EFFECTS = 12


def sparkline(
    values: Sequence[float] | np.ndarray, width: int, *, top: float | None = None, marks: str = BLOCKS
) -> str:
    """A line of blocks, each as high as the largest value of its stretch; a space where nothing is known.

    Args:
        values: one after the other.
        width: in characters, at most.
        top: what the highest block stands for; the largest value where None.
        marks: from low to high.
    """
    found = np.asarray(values, dtype=float)
    if not len(found) or not np.isfinite(found).any():
        return ""
    if len(found) > width:
        found = np.fmax.reduceat(found, np.linspace(0, len(found), width, endpoint=False).astype(int))
    highest = np.nanmax(found) if top is None else top
    if highest <= 0:
        return "".join(" " if np.isnan(value) else marks[0] for value in found)
    places = np.clip(found / highest * (len(marks) - 1), 0, len(marks) - 1)
    return "".join(" " if np.isnan(place) else marks[round(float(place))] for place in places)


def print_report(folder: str | Path, console: Console | None = None) -> None:
    """All that a terminal can show of a sweep.

    Args:
        folder: the sweep's.
        console: where it goes; standard output where None.

    Raises:
        ValueError: a folder without tables.
    """
    console = console or default_console()
    sweep = load(folder)
    summary = points(sweep)
    found = answer(sweep)
    print_table(console, Path(folder), summary)
    for line in found.sentences:
        console.print(escape(line.replace("**", "")), soft_wrap=True)
    if found.scheduling is not None:
        print_scheduling(found.scheduling, console)
    if found.speculation is not None:
        print_speculation(found.speculation, console)
    if found.precisions is not None:
        print_precisions(found.precisions, console)
    if found.verdicts:
        console.print()
        print_comparison(found.verdicts[0].table, console)
    if found.changes is not None:
        _print_effects(found, console)
    _print_sparklines(sweep, summary, console)
    for label, repeats, status, reason in failed_points(sweep):
        console.print(f"[red]{escape(status)}[/]  {escape(f'{label} (repeat {repeats}): {reason}')}", soft_wrap=True)
    told = set(found.verdicts[0].caveats) if found.verdicts else set()
    for line in [*caveats(sweep, summary), *found.caveats]:
        if line not in told:
            console.print(f"[yellow]note[/]  {escape(line)}", soft_wrap=True)


def print_precisions(precisions: pd.DataFrame, console: Console) -> None:
    """As many columns as the width has room for: the sizes' speeds and perplexity first.

    Args:
        precisions: from `analysis.precision`.
        console: where it goes.
    """
    found = table_of(precisions)
    if found is None:
        return
    bases = [place for place, is_base in enumerate(found.is_base) if is_base]
    bold = bases if len(found.labels) > 1 else []
    _print_cells(console, PRECISIONS, "precision", found.labels, found.columns, bold)
    for line in found.notes:
        console.print(f"[dim]{escape(_plain(line, console))}[/]", soft_wrap=True)


def print_speculation(frame: pd.DataFrame, console: Console) -> None:
    """A table a setting, and as many columns as the width has room for: speed-ups, measured and predicted, first.

    Args:
        frame: from `analysis.speculation`.
        console: where it goes.
    """
    for found in tables_of(frame):
        title = f"{SPECULATION}: {found.setting}" if found.setting else SPECULATION
        _print_cells(console, title, "drafter", found.labels, found.columns, [])
    for line in notes_of(frame) if len(frame) else []:
        console.print(f"[dim]{escape(_plain(line, console))}[/]", soft_wrap=True)


def print_scheduling(found: Scheduling, console: Console) -> None:
    """Who wins where, and all policies under one load.

    Args:
        found: of the sweep.
        console: where it goes.
    """
    for one in found.tables:
        _print_cells(console, f"{SCHEDULING}: {one.title}", one.what, one.labels, one.columns, [])
    for line in found.notes:
        console.print(f"[dim]{escape(_plain(line, console))}[/]", soft_wrap=True)


def _plain(text: str, console: Console) -> str:
    """Without signs that the terminal does not know."""
    if console.encoding.lower().startswith("utf"):
        return text
    return text.translate(_ASCII)


def _print_cells(
    console: Console, title: str, what: str, names: Sequence[str], columns: Sequence[Column], bold: Sequence[int]
) -> None:
    """As many columns as there is room for, those of a low rank first."""
    cells = [
        [
            [_plain(line, console) for line in (f"{cell.text} {STAR}" if cell.is_best else cell.text, *cell.small)]
            for cell in column.cells
        ]
        for column in columns
    ]
    labels = [wrap(label, _LABEL_WIDTH // 2) for label in names]
    room = console.width - max(len(line) for label in labels for line in label.splitlines())
    chosen: list[int] = []
    for place in sorted(range(len(cells)), key=lambda place: columns[place].rank):
        column = columns[place]
        room -= 2 + max(map(len, (column.title, column.unit, *(line for cell in cells[place] for line in cell))))
        # Where even one does not fit, it is cut.
        if room < 0 and chosen:
            break
        chosen.append(place)
    table = _table(title)
    table.add_column(what, no_wrap=True)
    for place in sorted(chosen):
        head = f"{columns[place].title}\n{columns[place].unit}"
        table.add_column(escape(head), justify="right", no_wrap=True)
    for i, label in enumerate(labels):
        shown = ["\n".join(cells[place][i]) for place in sorted(chosen)]
        table.add_row(escape(label), *map(escape, shown), style="bold" if i in bold else None)
    console.print()
    console.print(table)


def _print_effects(found: Answer, console: Console) -> None:
    changes = found.changes
    assert changes is not None
    size = np.log(changes["ratio"].astype(float)).abs().sort_values(ascending=False, kind="stable")
    table = _table(f"Effects on {found.metric.heading}")
    table.add_column("change")
    table.add_column("ratio [95 % interval]", justify="right", no_wrap=True)
    for _, row in changes.loc[sorted(size.index[:_MAX_EFFECTS])].iterrows():
        what = f"{row['knob']} {row['reference']} -> {row['value']}"
        if row["kind"] == "interaction":
            what += f" x {row['knob2']} {row['reference2']} -> {row['value2']}"
        table.add_row(escape(what), escape(ratio_text(row["ratio"], row["low"], row["high"])))
    console.print()
    console.print(table)


def _print_sparklines(sweep: Sweep, summary: pd.DataFrame, console: Console) -> None:
    """Of each point how its latencies are spread, and how its first run went."""
    labels = shown(summary)["label"].tolist()
    marks = BLOCKS if console.encoding.lower().startswith("utf") else PLAIN
    columns = [*_latencies(sweep, labels), *_over_time(sweep, labels)]
    if not columns:
        return
    label_width = min(_LABEL_WIDTH, max(map(len, labels)), console.width // 3)
    # At least eight blocks each; what does not fit goes, the last first.
    columns = columns[: max(1, (console.width - label_width) // 10)]
    width = min(_WIDEST, (console.width - label_width) // len(columns) - 2)
    table = _table("Latency (share of requests, log scale) and the first run (over time)")
    table.add_column("point", no_wrap=True)
    for head, _, _ in columns:
        table.add_column(head, no_wrap=True)
    for label in labels:
        cells = [sparkline(lines.get(label, []), width, top=top, marks=marks) for _, lines, top in columns]
        table.add_row(escape(wrap(label, label_width)), *cells)
    console.print()
    console.print(table)
    left = int((summary["num_repeats"] > 0).sum()) - len(labels)
    if left > 0:
        console.print(f"[dim]{left} more points are not drawn[/]", soft_wrap=True)


_Column = tuple[str, dict[str, np.ndarray], float | None]


def _latencies(sweep: Sweep, labels: Sequence[str]) -> list[_Column]:
    """Histograms over one range for all points, from the 1st to the 99th percentile of them together."""
    requests = measured_requests(sweep)
    requests = requests[requests["label"].isin(labels)]
    made: list[_Column] = []
    for column, title in (("ttft_s", "TTFT"), ("tpot_s", "TPOT")):
        values = numbers(requests[column])
        values = values[values > 0]
        if values.empty:
            continue
        low, high = (float(end) for end in values.quantile([0.01, 0.99]))
        edges = np.geomspace(low, max(high, low * 1.01), _WIDEST // 2 + 1)
        lines = {}
        for label, own in values.groupby(requests["label"]):
            lines[str(label)] = np.histogram(np.clip(own, edges[0], edges[-1]), edges)[0] / len(own)
        made.append((f"{title}\n{low * 1e3:.3g} to {high * 1e3:.3g} ms", lines, None))
    return made


def _over_time(sweep: Sweep, labels: Sequence[str]) -> list[_Column]:
    runs = sweep.runs[sweep.runs["status"] == OK].drop_duplicates(["sweep", "point_id"])
    steps = attach(sweep, sweep.steps.merge(runs[RUN_KEY], on=RUN_KEY), ["kv_blocks_total"])
    steps = steps[~(numbers(steps["start_s"]) < 0) & steps["label"].isin(labels)].sort_values("step", kind="stable")
    tokens = numbers(steps["num_prefill_tokens"]).fillna(0) + numbers(steps["num_decode_tokens"])
    made: list[_Column] = []
    for head, values, most in (
        ("KV use", numbers(steps["kv_blocks_used"]) / numbers(steps["kv_blocks_total"]), 1.0),
        ("running", numbers(steps["num_running"]), None),
        ("waiting", numbers(steps["num_waiting"]), None),
        ("tokens/step", tokens, None),
    ):
        if values.notna().any():
            lines = {str(label): own.to_numpy() for label, own in values.groupby(steps["label"])}
            top = float(values.max()) if most is None else most
            made.append((f"{head}\nto {'100 %' if most else f'{top:,.0f}'}", lines, top))
    return made


def _table(title: str) -> Table:
    return Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
