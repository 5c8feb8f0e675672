"""Fluidity: how many of a reader's deadlines the tokens of a request met (etalon, arXiv 2407.07000, section 4).

The first token is due `ttft_s` after the arrival, and each other one `tpot_s` after the deadline before it: a token
that comes early leaves its slack to those behind it. One that is late has missed its own deadline, and one more for
each `tpot_s` by which it is late; the deadlines behind it count from the moment when it came. Fluidity is the fraction
of all deadlines that were met. Without a limit for the first token the count begins behind it, and without one for the
others the first is the only deadline.
"""

from __future__ import annotations

import numpy as np

from experiments.points import Slo


def fluidity_fractions(times_s: np.ndarray, counts: np.ndarray, arrivals_s: np.ndarray, slo: Slo) -> np.ndarray:
    """Of several requests.

    Args:
        times_s: [num_tokens] when each token came, request after request.
        counts: [num_requests] tokens of each.
        arrivals_s: [num_requests].
        slo: the limits.

    Returns:
        [num_requests]; NaN where there was no deadline.
    """
    if not slo.given:
        return np.full(len(counts), np.nan)
    found = np.full(len(counts), np.nan)
    firsts = np.cumsum(counts) - counts
    if slo.ttft_s is not None and slo.tpot_s is not None and times_s.size:
        # Whoever was never late is done with: the usual case, and all at once.
        places = np.arange(times_s.size) - np.repeat(firsts, counts)
        late = times_s > np.repeat(arrivals_s + slo.ttft_s, counts) + places * slo.tpot_s
        # One more, so that requests without tokens at the end begin somewhere.
        num_late = np.add.reduceat(np.append(late, False), firsts, dtype=np.int64)
        punctual = (num_late == 0) & (counts > 0)
        found[punctual] = 1.0
    else:
        punctual = np.zeros(len(counts), dtype=bool)
    chosen = np.flatnonzero(~punctual & (counts > 0))
    found[chosen] = _token_by_token(times_s, counts[chosen], firsts[chosen], arrivals_s[chosen], slo)
    return found


def _token_by_token(
    times_s: np.ndarray, counts: np.ndarray, firsts: np.ndarray, arrivals_s: np.ndarray, slo: Slo
) -> np.ndarray:
    """As `fluidity_fractions`, of requests whose tokens begin at `firsts`."""
    # Longest first, so that those which have an i-th token are the first of all.
    order = np.argsort(-counts, kind="stable")
    lengths, firsts = counts[order], firsts[order]
    due_s = arrivals_s[order] + (slo.ttft_s or 0.0)
    total, missed = np.zeros(len(counts)), np.zeros(len(counts))
    longest = int(lengths[0]) if len(lengths) else 0
    for i in range(longest if slo.tpot_s is not None else min(longest, 1)):
        num = int(np.searchsorted(-lengths, -i, side="left"))
        came_s, deadline_s = times_s[firsts[:num] + i], due_s[:num]
        if i == 0 and slo.ttft_s is None:
            assert slo.tpot_s is not None
            due_s[:num] = came_s + slo.tpot_s
            continue
        late = came_s > deadline_s
        if slo.tpot_s is None:
            misses = late.astype(float)
        else:
            misses = np.where(late, 1 + np.floor((came_s - deadline_s) / slo.tpot_s), 0)
            due_s[:num] = np.where(late, came_s, deadline_s) + slo.tpot_s
        missed[:num] += misses
        total[:num] += np.maximum(misses, 1)
    found = np.full(len(counts), np.nan)
    with np.errstate(invalid="ignore"):
        found[order] = np.where(total > 0, 1 - missed / total, np.nan)
    return found
