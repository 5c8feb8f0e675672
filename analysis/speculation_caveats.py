"""What a reader must know before believing a table of drafters, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

_MAX_NAMED = 4


def caveats_of(frame: pd.DataFrame) -> list[str]:
    """Of a frame of `analysis.speculation`, before it is handed over.

    Args:
        frame: with its `.attrs` but for the caveats.
    """
    made = []
    made_up = frame[frame["text_valid"].eq(False)]
    if len(made_up):
        made.append(
            f"Acceptance was made up in {_some(made_up)}: the text means nothing and has no quality. What steps "
            "cost is measured."
        )
    alone = frame[frame["baseline"].isna()]
    if len(alone):
        made.append(f"No point without drafts to compare {_some(alone)} with; `speculation=off` is one.")
    differing = frame[frame["same_output_fraction"].lt(1) & ~frame["text_valid"].eq(False) & frame["is_greedy"]]
    if len(differing):
        least = 100 * differing["same_output_fraction"].min()
        made.append(
            f"Greedy outputs with drafts are not those without in {_some(differing)}: as few as {least:.0f} % of the "
            "requests are the same. Speculation should change none."
        )
    off = frame[frame["is_predicted_well"].eq(False)]
    if len(off):
        reach = f"{100 * frame.attrs['tolerance']:g} %"
        known = int(frame["is_predicted_well"].notna().sum())
        made.append(
            f"Measured costs do not explain the speed-up of {len(off)} of {known} rows to within {reach}: {_some(off)}."
        )
    single = int((frame["num_pairs"] == 1).sum())
    if single:
        made.append(
            f"Of {single} rows there is one repeat, which predicts itself: that the prediction fits proves nothing."
        )
    return made


def _some(rows: pd.DataFrame) -> str:
    names: Sequence[str] = [
        f"{label} ({setting})" if setting else label
        for label, setting in zip(rows["label"], rows["setting"], strict=True)
    ]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return "; ".join(names[:_MAX_NAMED]) + more
