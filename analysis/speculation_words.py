"""The answer to "which drafter pays?" in words, from a frame of `analysis.speculation`: of each setting the best."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.words import many, ratio_text

MAX_SENTENCES = 6


def paying(group: pd.DataFrame) -> Any:
    """The index of the fastest of the rows of a setting that is faster beyond its interval; None where none is."""
    sure = group[group["speedup_low"].gt(1) & ~group["text_valid"].eq(False)]
    return None if sure.empty else sure["speedup"].idxmax()


def sentences_of(frame: pd.DataFrame) -> list[str]:
    """One a setting, with figures in `**`; none where there is nothing to compare. Acceptance that was made up is no
    answer."""
    real = frame[frame["speedup"].notna() & ~frame["text_valid"].eq(False)]
    made = [_sentence(str(setting), group) for setting, group in real.groupby("setting", sort=False)]
    if len(made) > MAX_SENTENCES:
        left = many(len(made) - MAX_SENTENCES, "more such answer")
        return [*made[:MAX_SENTENCES], f"{left}: see the tables of speculation."]
    return made


def _sentence(setting: str, group: pd.DataFrame) -> str:
    where = f"At {setting}, " if setting else ""
    sure = paying(group)
    best = group.loc[group["speedup"].idxmax() if sure is None else sure]
    label, ratio = best["label"], ratio_text(best["speedup"], best["speedup_low"], best["speedup_high"])
    shown = f"**{label}**: **{ratio}** as fast as without drafts"
    if sure is not None:
        said = f"{where}what pays best is {shown}"
    elif best["speedup"] <= 1:
        said = f"{where}no drafter pays; the least slow is {shown}"
    elif math.isnan(best["speedup_low"]):
        said = f"{where}the fastest drafter was {shown}, in one repeat"
    else:
        said = f"{where}no drafter is shown to pay; the fastest is {shown}"
    length, needed = best["acceptance_length"], best["break_even_length"]
    if not (math.isnan(length) or math.isnan(needed)):
        said += f", at {length:.2f} tokens a verification where {needed:.2f} break even"
    return f"{said[:1].upper()}{said[1:]}."
