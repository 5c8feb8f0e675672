"""What a reader must know before believing a comparison of policies, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

_MAX_NAMED = 4


def caveats_of(frame: pd.DataFrame) -> list[str]:
    """Of a frame of `analysis.scheduling`, before it is handed over."""
    made = []
    if len(frame) and frame["simulated"].eq(True).any():
        which = "All points are" if frame["simulated"].eq(True).all() else "Some points are"
        made.append(f"{which} simulated: latencies are those of a model of step times, and outputs mean nothing.")
    late = frame[frame["num_repeats"].eq(1)]
    if len(late):
        made.append(f"Of {len(late)} of {len(frame)} points there is one repeat, and so no interval.")
    lost = frame[frame["num_repeats"].eq(0)]
    if len(lost):
        made.append(f"Not finished, and so in no comparison of policies: {_some(lost['policy'])}.")
    return made


def _some(names: Sequence[str]) -> str:
    told = list(dict.fromkeys(names))
    more = f" and {len(told) - _MAX_NAMED} more" if len(told) > _MAX_NAMED else ""
    return ", ".join(told[:_MAX_NAMED]) + more
