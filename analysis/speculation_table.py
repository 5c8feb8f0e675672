"""The tables of drafters as cells, for the page, the Markdown and the terminal: one a setting."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from analysis.metrics import THROUGHPUT
from analysis.precision_table import STAR, Cell, Column
from analysis.speculation_words import paying
from analysis.speculations import FEW_EVALUATED
from analysis.words import many, ratio_text

SPECULATION = "Speculation"
# Beside a prediction that is further off than it should be.
OFF = "≠"
# More settings or rows are read by nobody; `analysis.speculation` has all.
MAX_SETTINGS = 12
MAX_ROWS = 24
# Positions that have columns; the plot has all.
_MAX_POSITIONS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculationTable:
    """One setting of a frame of `analysis.speculation`.

    Args:
        setting: its title; empty where a sweep has one.
        labels: one a row, fastest first.
        columns: those of which anything is known.
    """

    setting: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]


def tables_of(frame: pd.DataFrame) -> list[SpeculationTable]:
    """Of each setting, in order; none of none."""
    groups = list(frame.groupby("setting", sort=False)) if len(frame) else []
    return [_table(str(setting), group, frame.attrs["num_positions"]) for setting, group in groups[:MAX_SETTINGS]]


def notes_of(frame: pd.DataFrame) -> list[str]:
    """How to read them."""
    reach = f"{100 * frame.attrs['tolerance']:g} %"
    made = [
        "Speed-up: output throughput over that without drafts, paired by repeat on the same requests, with its 95 % "
        f"interval; {STAR}: the fastest that is surely faster.",
        "Predicted: from what steps cost and how many drafts are accepted in the other repeats, whose requests are "
        "others; below it how far that was from each repeat. A step that only decodes n requests takes d with drafts "
        "and p(n) without, and gives each 1 + a/n tokens: it gains G = Σ(1 + a/n) p(n) / Σd. Requests that end at "
        "different times share less: H is a token's time without drafts, over what it would be at the occupancies with "
        "drafts. With a share f of the run without drafts that is no such step, the whole gains "
        f"1 / (f + (1 − f) / GH). {OFF}: more than {reach} from the measured one.",
        "Tokens: emitted a verification, the target's own included; below it the length at which nothing is gained at "
        "these costs. Probability: of each draft's acceptance, the same for all, that comes to the two lengths (none: "
        "not even if all were accepted). Rate: accepted of proposed. Position i: accepted of the drafts i places ahead "
        f"that the verdict fell on, all before them having been accepted; of fewer than {FEW_EVALUATED} there is no "
        "figure. Step: milliseconds of one that only decodes, without drafts and with; shares are of the time of all "
        "steps.",
    ]
    left = frame["setting"].nunique() - MAX_SETTINGS
    if left > 0:
        made.append(f"{many(left, 'more setting')}: `analysis.speculation`.")
    most = int(frame.groupby("setting").size().max()) if len(frame) else 0
    if most > MAX_ROWS:
        made.append(f"The fastest {MAX_ROWS} of {most} rows a setting.")
    return made


def _table(setting: str, group: pd.DataFrame, num_positions: int) -> SpeculationTable:
    order = group["speedup"].fillna(-math.inf).sort_values(ascending=False, kind="stable").index
    best = paying(group)
    rows = [group.loc[place] for place in order[:MAX_ROWS]]

    def column(title: str, unit: str, cells: list[Cell], rank: int) -> Column:
        return Column(title=title, unit=unit, cells=tuple(cells), rank=rank)

    made = [
        column("output", "tok/s", [Cell(text=THROUGHPUT.text(row[THROUGHPUT.column])) for row in rows], 6),
        column("speed-up", "× without", [_speedup(row, row.name == best) for row in rows], 0),
        column("predicted", "×", [_predicted(row) for row in rows], 1),
        column("tokens", "a verification", [_lengths(row) for row in rows], 2),
        column("probability", "of a draft", [_probabilities(row) for row in rows], 3),
        column("rate", "% accepted", [_percent(row["acceptance_rate"]) for row in rows], 7),
        *(
            column(f"p{i}", "% accepted", [_percent(row[f"acceptance_{i}"]) for row in rows], 7 + i)
            for i in range(1, min(num_positions, _MAX_POSITIONS) + 1)
        ),
        column("step", "ms", [_step(row) for row in rows], 4),
        column("draft", "% of time", [_percent(row["draft_time_fraction"]) for row in rows], 5),
        column("verify", "% of time", [_percent(row["verify_time_fraction"]) for row in rows], 5),
    ]
    known = tuple(one for one in made if any(cell.text != "–" for cell in one.cells))
    return SpeculationTable(setting=setting, labels=tuple(row["label"] for row in rows), columns=known)


def _speedup(row: pd.Series, is_best: bool) -> Cell:
    text = ratio_text(row["speedup"])
    if math.isnan(row["speedup_low"]):
        return Cell(text=text, is_best=is_best)
    ratio, ends = ratio_text(row["speedup"], row["speedup_low"], row["speedup_high"]).split(" ", 1)
    return Cell(text=ratio, small=(ends,), is_best=is_best)


def _predicted(row: pd.Series) -> Cell:
    text = _figure(row["predicted_speedup"])
    if row["is_predicted_well"] is not None and not row["is_predicted_well"]:
        text = f"{text} {OFF}"
    low, high = (100 * row[f"prediction_error_{end}"] for end in ("low", "high"))
    return Cell(text=text, small=() if math.isnan(low) else (f"{low:+.0f} to {high:+.0f} %",))


def _lengths(row: pd.Series) -> Cell:
    needed = row["break_even_length"]
    small = () if math.isnan(needed) else (f"even at {needed:.2f}",)
    return Cell(text=_figure(row["acceptance_length"]), small=small)


def _probabilities(row: pd.Series) -> Cell:
    needed = row["break_even_probability"]
    even = "even at none" if math.isnan(needed) else f"even at {needed:.2f}"
    small = () if math.isnan(row["break_even_length"]) else (even,)
    return Cell(text=_figure(row["acceptance_probability"]), small=small)


def _step(row: pd.Series) -> Cell:
    if math.isnan(row["step_s"]):
        return Cell(text="–")
    parts = f"{1e3 * row['draft_s']:.2f} + {1e3 * row['verify_s']:.2f}"
    return Cell(text=f"{1e3 * row['plain_step_s']:.2f} → {1e3 * row['step_s']:.2f}", small=(parts,))


def _percent(value: float) -> Cell:
    return Cell(text="–" if pd.isna(value) else f"{100 * value:.0f}")


def _figure(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2f}"
