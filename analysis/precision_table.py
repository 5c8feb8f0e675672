"""The table of precisions as cells, for the page, the Markdown and the terminal: what stands large, and what small."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.metrics import THROUGHPUT, TTFT_P50, metric_of
from analysis.precision_words import NO_DIFFERENCE, RULE
from analysis.precisions import at, interval_of, is_nothing
from analysis.quality_figures import FIGURES
from analysis.words import few, ratio_text

# More is read by nobody; `analysis.precision` has all.
MAX_ROWS = 24
STAR = "★"
PRECISIONS = "Quality, speed and memory"
MAX_SIZES = 4
_MIB = 2**-20
_TPOT = metric_of("tpot_p50_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One figure of one precision.

    Args:
        text: large.
        small: lines below it.
        is_best: on the frontier.
    """

    text: str
    small: tuple[str, ...] = ()
    is_best: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One figure of all.

    Args:
        title, unit: of the head.
        cells: one a row.
        rank: where room is short, those of a high rank go first.
    """

    title: str
    unit: str
    cells: tuple[Cell, ...]
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionTable:
    """What is shown of a frame of `analysis.precision`.

    Args:
        labels: one a row.
        is_base: whether a row is what others are compared with.
        columns: those of which anything is known.
        notes: how to read it.
    """

    labels: tuple[str, ...]
    is_base: tuple[bool, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...]


def table_of(precisions: pd.DataFrame) -> PrecisionTable | None:
    """None where no quality was measured."""
    if precisions.empty or not precisions[list(FIGURES)].notna().any(axis=None):
        return None
    sizes = _spread(precisions.attrs["sizes"], MAX_SIZES)
    rows = _chosen(precisions, sizes)
    made = [
        Column(title="bits", unit="a weight", cells=_each(rows, _bits), rank=3),
        Column(title="weights", unit="MiB", cells=_each(rows, _weights), rank=2),
        *(
            Column(
                title="speed" if size is None else f"{precisions.attrs['batch_name']} {size:g}",
                unit="tok/s",
                cells=tuple(_speed(row, size) for _, row in rows.iterrows()),
                rank=0,
            )
            for size in sizes
        ),
        Column(title="perplexity", unit="and ratio", cells=_each(rows, _perplexity), rank=1),
        Column(title="KL", unit="nats", cells=_each(rows, _divergence), rank=4),
        _share(rows, "top1_agreement_fraction", "top-1", "% agreed", 2, 5),
        _share(rows, "top1_flip_fraction", "flips", "% of tokens", 2, 6),
        _share(rows, "token_agreement_fraction", "greedy", "% agreed", 1, 7),
        Column(title="task", unit="% right", cells=_each(rows, _task), rank=8),
    ]
    return PrecisionTable(
        labels=tuple(rows["label"]),
        is_base=tuple(bool(base) for base in rows["is_baseline"]),
        columns=tuple(column for column in made if any(cell.text != "–" for cell in column.cells)),
        notes=tuple(_notes(precisions, rows, sizes)),
    )


def _each(rows: pd.DataFrame, cell: Callable[[pd.Series], Cell]) -> tuple[Cell, ...]:
    return tuple(cell(row) for _, row in rows.iterrows())


def _bits(row: pd.Series) -> Cell:
    return Cell(text=_figure(row["bits_per_weight"], "{:.2f}"))


def _weights(row: pd.Series) -> Cell:
    small = () if row["is_baseline"] else _known(row["weights_bytes_ratio"], ratio_text(row["weights_bytes_ratio"]))
    return Cell(text=_figure(row["weights_bytes"] * _MIB, "{:,.1f}"), small=small)


def _speed(row: pd.Series, size: float | None) -> Cell:
    def ratio(column: str) -> list[float]:
        return [row[at(f"{column}_{part}", size)] for part in ("ratio", "ratio_low", "ratio_high")]

    value = row[at(THROUGHPUT.column, size)]
    small = [] if row["is_baseline"] else [*_known(ratio(THROUGHPUT.column)[0], ratio_text(*ratio(THROUGHPUT.column)))]
    for metric in (TTFT_P50, _TPOT):
        latency, change = row[at(metric.column, size)], ratio(metric.column)[0]
        if pd.notna(latency):
            against = "" if row["is_baseline"] or math.isnan(change) else f" · {ratio_text(change)}"
            small.append(f"{metric.title.split()[0]} {metric.text(latency)} {metric.unit}{against}")
    return Cell(text=THROUGHPUT.text(value), small=tuple(small), is_best=bool(row[at("on_front", size)]))


def _perplexity(row: pd.Series) -> Cell:
    ratio = interval_of(row, "perplexity_ratio")
    small: tuple[str, ...] = ()
    if not row["is_baseline"] and not math.isnan(ratio.value):
        # A line for the ratio, one for its interval, and words of a size with them.
        lines = ratio_text(ratio.value, ratio.low, ratio.high).split(" ", 1)
        small = (*lines, *(textwrap.wrap(NO_DIFFERENCE, 16) if is_nothing(ratio) else []))
    return Cell(text=_figure(row["perplexity"], "{:,.3f}"), small=small)


def _divergence(row: pd.Series) -> Cell:
    found = interval_of(row, "kl_mean_nats")
    # What rounding leaves of nothing.
    if abs(found.value) < 1e-9:
        return Cell(text="0")
    ends = (f"[{few(found.low)}, {few(found.high)}]",) if found.known else ()
    return Cell(text=few(found.value), small=ends)


def _share(rows: pd.DataFrame, name: str, title: str, unit: str, digits: int, rank: int) -> Column:
    def cell(row: pd.Series) -> Cell:
        found = interval_of(row, name)
        # An end that was cut at 0 or 1 is not the further one.
        reach = max(found.value - found.low, found.high - found.value) if found.known else 0.0
        small = (f"±{100 * reach:.{digits}f}",) if reach else ()
        return Cell(text=_figure(100 * found.value, f"{{:.{digits}f}}"), small=small)

    return Column(title=title, unit=unit, cells=_each(rows, cell), rank=rank)


def _task(row: pd.Series) -> Cell:
    change = interval_of(row, "task_score_fraction_difference")
    small: tuple[str, ...] = ()
    if change.known and not row["is_baseline"]:
        small = (f"{100 * change.value:+.1f}", f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}]")
    return Cell(text=_figure(100 * row["task_score_fraction"], "{:.1f}"), small=small)


def _figure(value: float, form: str) -> str:
    return "–" if pd.isna(value) else form.format(value)


def _known(value: float, text: str) -> tuple[str, ...]:
    return () if pd.isna(value) else (text,)


def _spread(sizes: Sequence[float | None], most: int) -> list[float | None]:
    """All, or the smallest, the largest, and some evenly between."""
    if len(sizes) <= most:
        return list(sizes)
    return [sizes[i] for i in np.linspace(0, len(sizes) - 1, most).round().astype(int)]


def _chosen(precisions: pd.DataFrame, sizes: Sequence[float | None]) -> pd.DataFrame:
    """All, or the baselines, the frontiers and the fastest, in their order."""
    if len(precisions) <= MAX_ROWS:
        return precisions
    front = precisions[[at("on_front", size) for size in sizes]].any(axis=1)
    speed = precisions[at(THROUGHPUT.column, sizes[-1])]
    order = pd.DataFrame({"base": precisions["is_baseline"], "front": front, "speed": speed})
    first = order.sort_values(["base", "front", "speed"], ascending=False, kind="stable").index[:MAX_ROWS]
    return precisions.loc[sorted(first)]


def _notes(precisions: pd.DataFrame, rows: pd.DataFrame, sizes: Sequence[float | None]) -> list[str]:
    bases = list(dict.fromkeys(rows["baseline"].dropna()))
    against = bases[0] if len(bases) == 1 else "the baseline of the same settings"
    made = []
    if len(rows) > 1 and bases:
        made.append(f"Ratios and the task's differences are to {against}.")
        made.append(RULE)
    made.append(
        "Latencies are means of the repeats' medians. Brackets and ± are 95 % intervals: of speeds over repeats, of "
        "quality over windows of text, prompts and tasks, paired where two precisions are compared."
    )
    if len(rows) > 1:
        what = "perplexity" if precisions.attrs["front"] == "perplexity" else "KL divergence"
        made.append(f"{STAR}: at that size nothing faster has so low a {what}.")
    left = len(precisions) - len(rows)
    if left:
        made.append(f"{left} more rows, and all figures: `analysis.precision`.")
    if len(sizes) < len(precisions.attrs["sizes"]):
        made.append(f"{len(sizes)} of {len(precisions.attrs['sizes'])} batch sizes are shown.")
    return made
