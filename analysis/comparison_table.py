"""`minivllm compare FOLDER [FOLDER2]`: the table of `analysis.compare` in the terminal, and how to read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.baseline import Spec
from analysis.comparison import compare
from analysis.load import load
from analysis.metrics import THROUGHPUT, Metric, metric_of
from analysis.style import wrap
from analysis.verdicts import EQUAL_WITHIN

# What is assumed of a file or pipe, which has no width of its own.
_PIPED_WIDTH = 160
_LABEL_WIDTH = 44
_GOOD, _BAD = "green", "red"


def write_comparison(
    folder: str | Path,
    other: str | Path | None = None,
    *,
    baseline: Spec = None,
    metric: str = THROUGHPUT.column,
    within: Sequence[str] | str = (),
    equal_within: float = EQUAL_WITHIN,
    console: Console | None = None,
) -> pd.DataFrame:
    """Compare the points of one sweep, or two sweeps, and print what was found.

    Args:
        folder: a sweep's, such as `runs/quickstart`; the baseline where there are two.
        other: a second sweep's.
        baseline, metric, within, equal_within: as for `analysis.compare`.
        console: standard output where None.

    Returns:
        What `analysis.compare` returned.

    Raises:
        ValueError: as `analysis.load` and `analysis.compare` do.
    """
    sweeps = [load(one) for one in ([folder] if other is None else [folder, other])]
    made = compare(*sweeps, baseline=baseline, metric=metric, within=within, equal_within=equal_within)
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, highlight=False, width=max(console.width, _PIPED_WIDTH))
    print_comparison(made, console)
    for warning in dict.fromkeys(line for sweep in sweeps for line in sweep.warnings):
        console.print(f"[yellow]note[/]  {escape(warning)}.", soft_wrap=True)
    return made


def print_comparison(made: pd.DataFrame, console: Console) -> None:
    """A frame of `analysis.compare` as a table, then its caveats."""
    metric = metric_of(made.attrs["metric"])
    better = made.attrs["higher_is_better"]
    aim = "" if better is None else f", {'higher' if better else 'lower'} is better"
    bases = list(dict.fromkeys(made["baseline"]))
    # Of two sweeps, each point is compared with itself in the other: that belongs into the title.
    between = [base.removesuffix(f": {label}") for base, label in zip(made["baseline"], made["label"], strict=True)]
    if len(set(between)) == 1 and between != list(made["baseline"]):
        bases = [f"the same points of {between[0]}"]
    against = f" against {bases[0]}" if len(bases) == 1 else ""
    width = _LABEL_WIDTH if len(bases) < 2 and console.width > 100 else _LABEL_WIDTH // 2
    by_ratio = bool(made["ratio"].notna().any())
    effect = f"{made.attrs['effect'] * 100:g} %"
    interval = f"{'ratio' if by_ratio else 'difference'}\n[95 % interval]"
    columns: dict[str, list[str]] = {
        "point\n": [wrap(label, width) for label in made["label"]],
        "against\n": [wrap(base, width) for base in made["baseline"]],
        "pairs\n": [str(num) for num in made["num_pairs"]],
        f"mean\n{metric.unit}": [metric.text(value) for value in made["mean"]],
        f"baseline\n{metric.unit}": [metric.text(value) for value in made["baseline_mean"]],
        interval: [_effect(metric, row, by_ratio) for _, row in made.iterrows()],
        "p\nHolm": [_p(value) for value in made["p_holm"]],
        "noise\nfloor": [_percent(value) for value in made["noise_floor"]],
        "detects\nfrom": [_percent(value) for value in made["detectable"]],
        f"repeats\nfor {effect}": [_count(value) for value in made["repeats_needed"]],
        "verdict\n": list(made["verdict"]),
    }
    if len(bases) < 2:
        del columns["against\n"]
    if not made["noise_floor"].notna().any():
        del columns["noise\nfloor"]
    # Where room is short, what can be had from the others or from a wider window goes first.
    for head in (f"baseline\n{metric.unit}", f"mean\n{metric.unit}", "detects\nfrom", f"repeats\nfor {effect}"):
        if _width(columns) > console.width:
            del columns[head]
    table = Table(
        title=escape(f"{metric.heading}{aim}{against}"),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    for head in columns:
        is_text = head in ("point\n", "against\n", "verdict\n")
        table.add_column(escape(head), justify="left" if is_text else "right", no_wrap=True)
    for i, row in made.iterrows():
        cells = [escape(cells[i]) for cells in columns.values()]
        table.add_row(*cells[:-1], _coloured(row, better))
    if made.empty:
        console.print(f"[bold]{escape(str(table.title))}[/]: there is no other point", soft_wrap=True)
    else:
        console.print(table)
    for line in made.attrs["caveats"]:
        console.print(f"[yellow]note[/]  {escape(line)}", soft_wrap=True)


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Of a table without borders: each column's longest line, and two spaces between columns."""
    longest = (
        max(len(line) for cell in (head, *cells) for line in cell.splitlines()) for head, cells in columns.items()
    )
    return sum(longest) + 2 * (len(columns) - 1)


def _coloured(row: pd.Series, better: bool | None) -> str:
    """Green or red where the words of a metric judge; they are there without colour too."""
    text = escape(row["verdict"])
    if better is None or row["verdict"] not in ("faster", "slower", "better", "worse", "less", "more"):
        return text
    return f"[{_GOOD if (row['difference'] > 0) == better else _BAD}]{text}[/]"


def _effect(metric: Metric, row: pd.Series, by_ratio: bool) -> str:
    if by_ratio:
        if math.isnan(row["ratio"]):
            return "–"
        interval = f" [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]" if not math.isnan(row["ratio_low"]) else ""
        return f"{row['ratio']:.3f}×{interval}"
    if math.isnan(row["difference_low"]):
        return metric.text(row["difference"])
    low, high = metric.text(row["difference_low"]), metric.text(row["difference_high"])
    return f"{metric.text(row['difference'])} [{low}, {high}]"


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _percent(value: float) -> str:
    if math.isnan(value):
        return "–"
    return ">1000 %" if value > 10 else f"{value * 100:.1f} %"


def _count(value: float) -> str:
    if math.isnan(value):
        return "–"
    return ">10,000" if math.isinf(value) else f"{value:,.0f}"
