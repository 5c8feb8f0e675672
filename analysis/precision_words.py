"""The answer to "which precision?" in words, from a frame of `analysis.precision`.

For each batch size, the fastest precision that costs next to nothing, and the fastest of all."""

from __future__ import annotations

import math

import pandas as pd

from analysis.metrics import THROUGHPUT
from analysis.precisions import at, interval_of, is_nothing
from analysis.words import few, ratio_text

# What a precision may cost of the perplexity, as a ratio less 1.
ALLOWED = 0.01
RULE = (
    f"Fastest is what makes most output tokens a second. A precision costs at most {100 * ALLOWED:g} % of perplexity "
    f"where the 95 % interval of its ratio to the baseline ends at {1 + ALLOWED:g} or below."
)
NO_DIFFERENCE = "no measurable difference"
MAX_SENTENCES = 6


def sentences_of(precisions: pd.DataFrame) -> list[str]:
    """One for each baseline and batch size, with figures in `**`; none where there is nothing to compare."""
    made = []
    for base, group in precisions.groupby("baseline", sort=False):
        if len(group) > 1:
            sizes = precisions.attrs["sizes"]
            made += [_sentence(str(base), group, size, precisions.attrs["batch_name"]) for size in sizes]
    made = [line for line in made if line]
    if len(made) > MAX_SENTENCES:
        return [*made[:MAX_SENTENCES], f"{len(made) - MAX_SENTENCES} more such answers are in the table of precisions."]
    return made


def _sentence(base: str, group: pd.DataFrame, size: float | None, batch_name: str) -> str:
    speed = group[at(THROUGHPUT.column, size)]
    if not speed.notna().any():
        return ""
    where = "" if size is None else f"At {batch_name} {size:g}, "
    fastest = group.loc[speed.idxmax()]
    before = group[group["is_baseline"]]
    if before.empty or math.isnan(before[speed.name].iloc[0]):
        shown = THROUGHPUT.text(fastest[speed.name])
        return _opened(
            f"{where}**{fastest['label']}** is the fastest (**{shown}** {THROUGHPUT.unit}); the baseline {base} has no "
            "figures there, so there are no ratios."
        )
    if fastest["is_baseline"]:
        return _opened(f"{where}nothing is faster than **{base}** (**{THROUGHPUT.text(speed.max())}** tok/s).")
    known = group[group["perplexity_ratio"].notna() & ~group["is_baseline"]]
    if known.empty:
        return _opened(f"{where}the fastest is {_gain(fastest, base, size)}{_divergence(fastest)}.")
    # Where there are no items there is no interval, and the figure is all there is.
    ends = group["perplexity_ratio_high"].fillna(group["perplexity_ratio"])
    cheap = group.loc[speed[ends.le(1 + ALLOWED) | group["is_baseline"]].idxmax()]
    limit = f"{100 * ALLOWED:g} % of perplexity"
    if cheap["is_baseline"]:
        first = f"{where}nothing that costs at most {limit} is faster than **{base}**."
    else:
        first = f"{where}the fastest that costs at most {limit} is {_gain(cheap, base, size)}{_cost(cheap)}"
        if cheap["label"] == fastest["label"]:
            return _opened(f"{first}; it is the fastest of all.")
        first += "."
    return _opened(f"{first} Fastest of all is {_gain(fastest, base, size)}{_cost(fastest)}.")


def _gain(row: pd.Series, base: str, size: float | None) -> str:
    found = [row[at(f"{THROUGHPUT.column}_{part}", size)] for part in ("ratio", "ratio_low", "ratio_high")]
    if math.isnan(found[0]):
        return f"**{row['label']}**, measured in no repeat in which {base} was,"
    unsure = " (no difference shown)" if found[1] <= 1 <= found[2] else ""
    return f"**{row['label']}**: **{ratio_text(*found)}** as fast as {base}{unsure}"


def _cost(row: pd.Series) -> str:
    ratio = interval_of(row, "perplexity_ratio")
    if math.isnan(ratio.value):
        return f"{_divergence(row)}, its perplexity not measured"
    text = ratio_text(ratio.value, ratio.low, ratio.high)
    return f" for **{text}** its perplexity" + (f" ({NO_DIFFERENCE})" if is_nothing(ratio) else "")


def _divergence(row: pd.Series) -> str:
    found = interval_of(row, "kl_mean_nats")
    if math.isnan(found.value):
        return ""
    ends = f" [{few(found.low)}, {few(found.high)}]" if found.known else ""
    return f" at a KL divergence of **{few(found.value)}{ends}** nats a token"


def _opened(text: str) -> str:
    return text[:1].upper() + text[1:]
