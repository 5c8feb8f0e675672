"""What must hold in every run, real or simulated, whatever the policy: the rows of its tables against each other.

Rows are mappings, as of `DataFrame.to_dict("records")`; those of the warm-up are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]


def unaccounted_tokens(requests: Sequence[Row], steps: Sequence[Row], num_recomputed_tokens: int = 0) -> int:
    """Tokens that the steps computed, less those that the requests needed; 0 where none was lost or computed twice.

    A request needs K/V of all of its tokens but the last, less what the prefix cache gave it, and again what it lost by
    preemption. Exact without speculation, for requests that ended by their length.

    Args:
        requests, steps: of one run.
        num_recomputed_tokens: of that run (in the table `runs`).
    """
    computed = sum(int(step["num_prefill_tokens"]) + int(step["num_decode_tokens"]) for step in steps)
    needed = sum(
        int(r["num_prompt_tokens"]) - int(r["num_cached_tokens"]) + int(r["num_output_tokens"]) - 1
        for r in requests
        if not r["warmup"] and r["num_output_tokens"]
    )
    return computed - needed - num_recomputed_tokens


def littles_law_error(requests: Sequence[Row], steps: Sequence[Row]) -> float:
    """Little's law, L = lambda W, as a relative error: requests in the system as the steps count them, over time,
    against the sum of the requests' own times in it.

    Exact (to rounding) in a simulation without overlap; in a real run short of what the client does between steps, and
    where steps overlap short of the moment in which a request's last token is on its way.

    Args:
        requests, steps: of one run; all requests have ended.
    """
    sent_s = np.sort([r["arrival_s"] + (_known(r["arrival_lateness_s"]) or 0.0) for r in requests if not r["warmup"]])
    finish_s = np.sort([r["finish_s"] for r in requests if not r["warmup"]])
    whole_s = float(finish_s.sum() - sent_s.sum())
    inside_s, end_s, num_left = 0.0, 0.0, 0
    for step in steps:
        # Whoever was there after the step before waits while nothing runs.
        inside_s += num_left * max(0.0, step["start_s"] - end_s)
        end_s = step["start_s"] + step["duration_s"]
        num_left = int(step["num_running"]) + int(step["num_waiting"])
        # Those that ended with this step were there during it.
        tolerance_s = 1e-9 * max(1.0, end_s)
        first, last = np.searchsorted(finish_s, [step["start_s"] + tolerance_s, end_s + tolerance_s])
        inside_s += (num_left + int(last - first)) * step["duration_s"]
    return inside_s / whole_s - 1 if whole_s else 0.0


def _known(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
