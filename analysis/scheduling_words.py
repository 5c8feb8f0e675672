"""The answer to "which policy?" in words: under each setting's chosen load, and in capacity; and how true a simulation
was."""

from __future__ import annotations

import math

import pandas as pd

from analysis.scheduling_metrics import GOODPUT, LATENCY_METRICS
from analysis.schedulings import load_text
from analysis.words import many, ratio_text

MAX_SENTENCES = 4
_NAMED = 3
_TOLD = (LATENCY_METRICS[2][0], LATENCY_METRICS[0][1], GOODPUT)


def sentences_of(frame: pd.DataFrame, found: pd.DataFrame, capacities: pd.DataFrame, errors: pd.DataFrame) -> list[str]:
    """With figures in `**`; none where there is nothing to compare.

    Args:
        frame: from `analysis.scheduling`.
        found: from `analysis.winners`.
        capacities: from `analysis.capacity`.
        errors: from `analysis.fidelity`.
    """
    made = []
    for setting, group in found.groupby("setting", sort=False):
        load = frame.attrs["chosen"][setting]
        rows = group if math.isnan(load) else group[group["load"] == load]
        parts = []
        for metric in _TOLD:
            own = rows[rows["metric"] == metric.column]
            if len(own):
                parts.append(f"{metric.title} {_said(own.iloc[0])}")
        at = ", ".join(part for part in (str(setting), load_text(frame, load)) if part)
        if parts:
            made.append(f"{f'At {at}' if at else 'Policies'}: {'; '.join(parts)}.")
    if len(made) > MAX_SENTENCES:
        made = [*made[:MAX_SENTENCES], f"{many(len(made) - MAX_SENTENCES, 'more setting')}: see who wins."]
    known = capacities.dropna(subset=["capacity_rps"]) if len(capacities) else capacities
    if len(known):
        best = known.iloc[0]
        last = known.iloc[-1]
        least = f", the least **{last['capacity_rps']:.3g}** by {last['label']}" if len(known) > 1 else ""
        made.append(
            f"The highest rate within the SLO is **{best['capacity_rps']:.3g} req/s** by {best['label']}{least}."
        )
    if len(errors):
        made.append(_true(errors))
    return made


def _said(row: pd.Series) -> str:
    best, alike = row["best"], row["alike"]
    if row["is_told"]:
        if math.isnan(row["ratio"]):
            return f"best by **{best}**"
        return f"best by **{best}**, {ratio_text(row['ratio'], row['ratio_low'], row['ratio_high'])} {row['runner_up']}"
    if row["is_told"] is None:
        return f"best seen by {best}, in too few repeats to tell"
    if len(alike) + 1 == row["num_policies"]:
        return "no difference that the data can show"
    more = f" and {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
    return f"best by **{best}**, not told from {', '.join(alike[:_NAMED])}{more}"


def _true(errors: pd.DataFrame) -> str:
    known = errors.dropna(subset=["error"])
    within = int(known["is_within"].eq(True).sum())
    said = f"Simulated against real: **{within} of {len(known)}** figures are within what is tolerated"
    if len(known):
        worst = known.loc[known["error"].abs().idxmax()]
        said += f", the furthest off by {100 * worst['error']:+.1f} %"
    ranking = errors.attrs["ranking"]
    told = int(ranking["num_told"].sum()) if len(ranking) else 0
    if told:
        alike = int(ranking["num_agreeing"].sum())
        said += f"; of {many(told, 'pair')} of policies that real runs tell apart it orders **{alike}** alike"
    return f"{said}."
