"""The section on precisions: a table of quality beside speed and memory, and how they trade."""

from __future__ import annotations

import pandas as pd

from analysis.page.markup import esc, section, table
from analysis.precision_table import PRECISIONS, STAR, Cell, table_of


def precisions_section(precisions: pd.DataFrame | None, drawn: str) -> str:
    """Nothing where no quality was measured.

    Args:
        precisions: from `analysis.precision`.
        drawn: its plots.
    """
    shown = None if precisions is None else table_of(precisions)
    if shown is None:
        return ""
    head = ["precision", *(f"{column.title}\n{column.unit}" for column in shown.columns)]
    rows = [
        [esc(label), *(cell_html(column.cells[place]) for column in shown.columns)]
        for place, label in enumerate(shown.labels)
    ]
    bases = [place for place, is_base in enumerate(shown.is_base) if is_base]
    made = table(head, rows, kind="precisions", bold=bases if len(rows) > 1 else ())
    return section(
        "precisions", PRECISIONS, f'<div class="precisions-table">{made}</div>{drawn}', " ".join(shown.notes)
    )


def cell_html(cell: Cell) -> str:
    """A figure, starred where it is the best, over its small lines."""
    text = f'<b title="on the frontier">{STAR} {esc(cell.text)}</b>' if cell.is_best else esc(cell.text)
    return text + "".join(f"<small>{esc(line)}</small>" for line in cell.small)
