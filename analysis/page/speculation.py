"""The section on speculation: a table a setting, and its plots."""

from __future__ import annotations

import pandas as pd

from analysis.page.markup import esc, rich, section, table
from analysis.page.precisions import cell_html
from analysis.speculation_table import SPECULATION, notes_of, tables_of


def speculation_section(frame: pd.DataFrame | None, drawn: str) -> str:
    """Nothing where nothing was drafted.

    Args:
        frame: from `analysis.speculation`.
        drawn: its plots.
    """
    if frame is None or frame.empty:
        return ""
    parts = []
    for shown in tables_of(frame):
        head = ["drafter", *(f"{column.title}\n{column.unit}" for column in shown.columns)]
        rows = [
            [esc(label), *(cell_html(column.cells[place]) for column in shown.columns)]
            for place, label in enumerate(shown.labels)
        ]
        title = f"<h3>{esc(shown.setting)}</h3>" if shown.setting else ""
        parts.append(f'{title}<div class="precisions-table">{table(head, rows, kind="precisions")}</div>')
    notes = "".join(f'<p class="note">{rich(line)}</p>' for line in notes_of(frame))
    return section("speculation", SPECULATION, f"{''.join(parts)}{notes}{drawn}")
