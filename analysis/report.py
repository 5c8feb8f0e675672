"""`minivllm report FOLDER`: a table in the terminal, and in the sweep's folder `report.html`, one page that needs no
network, and `report.md` with `plots/*.png`."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.answer import Answer, answer
from analysis.caveats import caveats
from analysis.figures import write_figures
from analysis.load import Sweep, load
from analysis.markdown import failed_points, markdown, measured, range_text
from analysis.metrics import METRICS
from analysis.page import page
from analysis.plots import write_plots
from analysis.style import wrap
from analysis.summary import points
from analysis.words import many

# What is assumed of a file or pipe, which has no width of its own.
_PIPED_WIDTH = 160
_LABEL_WIDTH = 44
# Shown before all others where room is short.
_KEY_TITLES = [metric.title for metric in METRICS if metric.key]
_FIRST = {title: i for i, title in enumerate(["n", _KEY_TITLES[0], "speed-up", *_KEY_TITLES[1:], "min to max"])}


def write_report(folder: str | Path, console: Console | None = None, *, figures: str | Path | None = None) -> Path:
    """Analyse one sweep and say what it found, on the console and in its folder.

    Args:
        folder: the sweep's, such as `runs/quickstart`.
        console: where the table goes; standard output where None.
        figures: a folder for every plot of the page as an SVG; none are written where None.

    Returns:
        The Markdown report; its pictures lie in `plots/` beside it.

    Raises:
        ValueError: a folder without tables, or one of the two that cannot be written to.
    """
    folder = Path(folder)
    sweep = load(folder)
    summary = points(sweep)
    found = answer(sweep)
    console = console or default_console()
    print_table(console, folder, summary)
    for line in found.sentences:
        console.print(escape(line.replace("**", "")), soft_wrap=True)
    for label, repeats, status, reason in failed_points(sweep):
        console.print(f"[red]{escape(status)}[/]  {escape(f'{label} (repeat {repeats}): {reason}')}", soft_wrap=True)
    for line in [*caveats(sweep, summary), *found.caveats]:
        console.print(f"[yellow]note[/]  {escape(line)}", soft_wrap=True)
    report = folder / "report.md"
    try:
        plots = write_plots(sweep, summary, folder / "plots", found.scheduling)
        text = markdown(
            sweep, summary, {name: path.relative_to(folder).as_posix() for name, path in plots.items()}, found
        )
        _write(report, text)
        _write(folder / "report.html", page(sweep, summary, found))
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"folder={folder}: must be writable with room for a report: {why}") from error
    drawn = [] if figures is None else _write_figures(sweep, summary, found, Path(figures))
    console.print(f"report  {escape(str(report))}", soft_wrap=True)
    console.print(f"page    {escape(str(folder / 'report.html'))}", soft_wrap=True)
    if figures is not None:
        console.print(f"figures {escape(str(figures))}: {many(len(drawn), 'SVG file')}", soft_wrap=True)
    return report


def _write_figures(sweep: Sweep, summary: pd.DataFrame, found: Answer, folder: Path) -> list[Path]:
    try:
        return write_figures(sweep, summary, found, folder)
    except OSError as error:
        raise ValueError(
            f"figures={folder}: must be a folder that can be written: {error.strerror or error}"
        ) from error


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def default_console() -> Console:
    """Standard output; wide where that is a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def print_table(console: Console, folder: Path, summary: pd.DataFrame) -> None:
    """As many metrics as the width has room for, the key ones first; the report has them all.

    Args:
        console: where the table goes.
        folder: named in its title.
        summary: from `analysis.points`.
    """
    finished = summary[summary["num_repeats"] > 0]
    failed = len(summary) - len(finished)
    head = f"{folder.resolve().name}: {many(len(summary), 'point')}, {failed} failed"
    if finished.empty:
        console.print(f"[bold]{escape(head)}[/]; no run finished", soft_wrap=True)
        return
    columns: list[tuple[str, str, list[str]]] = [("n", "", [str(n) for n in finished["num_repeats"]])]
    for metric in measured(finished):
        columns.append((metric.title, metric.unit, [metric.text(value) for value in finished[metric.column]]))
        if metric is METRICS[0]:
            if finished["num_repeats"].max() > 1:
                columns.append(("min to max", metric.unit, [range_text(metric, row) for _, row in finished.iterrows()]))
            if len(finished) > 1 and finished["speedup"].notna().any():
                ratios = ["–" if pd.isna(ratio) else f"{ratio:.2f}×" for ratio in finished["speedup"]]
                columns.append(("speed-up", "", ratios))
    first = sorted(range(len(columns)), key=lambda place: _FIRST.get(columns[place][0], len(_FIRST)))
    labels = [wrap(label, _LABEL_WIDTH if console.width > 100 else _LABEL_WIDTH // 2) for label in finished["label"]]
    room = console.width - max(len(line) for label in labels for line in label.splitlines())
    chosen = []
    for place in first:
        room -= 2 + max(map(len, (*columns[place][:2], *columns[place][2])))
        if room < 0:
            break
        chosen.append(place)
    table = Table(title=escape(head), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("point", no_wrap=True)
    for place in sorted(chosen):
        table.add_column(f"{columns[place][0]}\n{columns[place][1]}", justify="right", no_wrap=True)
    for i, (label, is_baseline) in enumerate(zip(labels, finished["is_baseline"], strict=True)):
        style = "bold" if is_baseline and len(finished) > 1 else None
        table.add_row(escape(label), *(columns[place][2][i] for place in sorted(chosen)), style=style)
    console.print(table)
