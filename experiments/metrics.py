"""From instants to numbers, each defined by what was stamped and nothing else.

TTFT = first token - arrival. TPOT = (finish - first token) / (n - 1), null for n = 1. ITL = every gap between two
tokens of a request, pooled over requests. E2E = finish - arrival. Queue = first scheduled - arrival. Goodput =
requests a second that meet every limit; attainment is a fraction of the requests *offered*, not of those finished:
turns of a conversation that could not be sent count too. Waiting, on the mean over time, is by Little's law the sum of
the requests' times in the queue (and of those after a preemption) over the run's: exact, where a look at each step is
not. The cost of a million output tokens is what the machine costs while the run lasts, over the tokens that it made.
Acceptance rate = drafts accepted / drafts proposed. Acceptance length = tokens emitted a verification, the target's
own included: 1 + accepted / verifications. Without speculation there is neither, and counts are null.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from experiments.tables import BY_POSITION
from minivllm.request import Speculated


def acceptance(requests: Sequence[Speculated]) -> dict[str, Any]:
    """Columns of what came of the drafts of some requests together."""
    num_verifications = sum(one.num_verifications for one in requests)
    drafted = sum(one.num_draft_tokens for one in requests)
    accepted = sum(one.num_accepted_tokens for one in requests)
    lists = (
        [one.proposed for one in requests],
        [one.evaluated for one in requests],
        [one.accepted for one in requests],
    )
    by_position = ([sum(counts) for counts in zip_longest(*several, fillvalue=0)] for several in lists)
    return {
        "num_verifications": num_verifications,
        "num_draft_tokens": drafted,
        "num_accepted_tokens": accepted,
        "acceptance_rate": ratio(accepted, drafted),
        "acceptance_length": 1 + accepted / num_verifications if num_verifications else None,
        **dict(zip(BY_POSITION, by_position, strict=True)),
    }


def economy(
    num_output_tokens: int, duration_s: float, energy_j: float | None, price_per_hour: float | None
) -> dict[str, Any]:
    """Energy and money over output tokens; null where one of them is unknown."""
    price = None if price_per_hour is None else price_per_hour * duration_s / 3600
    return {
        "energy_j": energy_j,
        "energy_per_output_token_j": None if energy_j is None else ratio(energy_j, num_output_tokens),
        "cost_per_million_output_tokens": None if price is None else ratio(price * 1e6, num_output_tokens),
    }


def peak_process_bytes() -> int:
    """Largest resident size of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def ratio(numerator: float, denominator: float) -> float | None:
    """None where there is nothing to divide by."""
    return numerator / denominator if denominator else None
