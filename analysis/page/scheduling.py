"""The section on scheduling: who wins where, all policies under one load, capacities, fidelity, and their plots."""

from __future__ import annotations

from analysis.page.markup import esc, folded, rich, section, table
from analysis.page.precisions import cell_html
from analysis.scheduling_answer import Scheduling
from analysis.scheduling_table import SCHEDULING


def scheduling_section(found: Scheduling | None, drawn: str) -> str:
    """Nothing where no policy and no rate was varied.

    Args:
        found: of the sweep.
        drawn: its plots.
    """
    if found is None:
        return ""
    parts: list[str] = []
    details: list[str] = []
    for shown in found.tables:
        head = [shown.what, *(f"{column.title}\n{column.unit}" for column in shown.columns)]
        rows = [
            [esc(label), *(cell_html(column.cells[place]) for column in shown.columns)]
            for place, label in enumerate(shown.labels)
        ]
        made = f'<div class="precisions-table">{table(head, rows, kind="precisions")}</div>'
        if shown.is_detail:
            details.append(folded(shown.title, made))
        else:
            parts.append(f"<h3>{esc(shown.title)}</h3>{made}")
    notes = "".join(f'<p class="note">{rich(line)}</p>' for line in found.notes)
    body = f"{''.join(parts)}{''.join(details)}{notes}{drawn}"
    return section("scheduling", SCHEDULING, body if found.tables or drawn else "")
