"""All that a report says of policies, found once: the page, the Markdown and the terminal show it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.load import Sweep
from analysis.scheduling_capacity import capacity
from analysis.scheduling_clients import client_tails
from analysis.scheduling_fidelity import fidelity
from analysis.scheduling_plots import Spec, scheduling_specs
from analysis.scheduling_rows import has_scheduling
from analysis.scheduling_table import (
    SchedulingTable,
    capacity_table,
    fidelity_tables,
    figure_tables,
    notes_of,
    winner_tables,
)
from analysis.scheduling_winners import winners
from analysis.scheduling_words import sentences_of
from analysis.schedulings import scheduling
from analysis.summary import measured_requests


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scheduling:
    """Of one sweep.

    Args:
        frame: from `analysis.scheduling`.
        winners: from `analysis.winners`.
        tables: in the order in which they are shown.
        notes: how to read them.
        sentences: the answer, with figures in `**`.
        specs: what its plots draw, by name.
    """

    frame: pd.DataFrame
    winners: pd.DataFrame
    tables: tuple[SchedulingTable, ...]
    notes: tuple[str, ...]
    sentences: tuple[str, ...]
    specs: dict[str, Spec]

    @property
    def caveats(self) -> list[str]:
        """What speaks against believing it."""
        return list(self.frame.attrs["caveats"])


def scheduling_answer(sweep: Sweep) -> Scheduling | None:
    """None where neither a part of the scheduler nor the rate was varied, and no capacity was looked for."""
    capacities = capacity(sweep)
    if not has_scheduling(sweep) and capacities.empty:
        return None
    frame = scheduling(sweep)
    errors = fidelity(sweep, frame)
    found = winners(sweep, frame)
    requests = measured_requests(sweep)
    limits = capacity_table(capacities)
    tables = [
        *([] if limits is None else [limits]),
        *winner_tables(frame, found),
        *figure_tables(frame, found),
        *fidelity_tables(errors, frame),
    ]
    return Scheduling(
        frame=frame,
        winners=found,
        tables=tuple(tables),
        notes=tuple(notes_of(frame, errors) if len(frame) else ()),
        sentences=tuple(sentences_of(frame, found, capacities, errors)),
        specs=scheduling_specs(frame, requests, client_tails(sweep, requests), capacities, errors),
    )
