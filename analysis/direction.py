"""Which way a metric is good, and the words for having more or less of it.

| metrics | up | down | better is |
| --- | --- | --- | --- |
| throughputs | faster | slower | up |
| latencies and other times | slower | faster | down |
| goodput, capacity, attainment, hit, fairness and fluidity fractions | better | worse | up |
| acceptance, agreement, task scores, MBU and MFU | better | worse | up |
| perplexity, divergence, flips | worse | better | down |
| bytes, bits, energy, cost, preemptions, evictions, recomputed tokens | more | less | down |
| swapped blocks, requests waiting, service gaps | more | less | down |
| all others | more | less | neither |

Amounts keep plain words although less of them is better: "less" memory says what was seen, "better" would judge it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Direction:
    """How to speak of a metric.

    Args:
        higher_is_better: None where neither is.
        up: the word for a higher figure.
        down: for a lower one.
    """

    higher_is_better: bool | None
    up: str
    down: str


_RULES: tuple[tuple[str, Direction], ...] = (
    (r"(^|_)throughput_", Direction(higher_is_better=True, up="faster", down="slower")),
    (r"^energy|^cost|_bytes$|^bits_", Direction(higher_is_better=False, up="more", down="less")),
    (
        r"^num_(preemptions|evictions|recomputed_tokens|swapped_blocks|waiting_mean)$|^service_gap_|^recomputed_",
        Direction(higher_is_better=False, up="more", down="less"),
    ),
    (r"^perplexity$|^kl_|_nats$|_flip_fraction$", Direction(higher_is_better=False, up="worse", down="better")),
    (
        r"^goodput|^capacity_|_attainment_|_hit_fraction$|^jain_|^fluidity_|^acceptance_|_agreement_|^task_score_"
        r"|^first_divergence_|^m[bf]u_",
        Direction(higher_is_better=True, up="better", down="worse"),
    ),
    (r"_s$", Direction(higher_is_better=False, up="slower", down="faster")),
)
_NEITHER = Direction(higher_is_better=None, up="more", down="less")


def direction_of(metric: str) -> Direction:
    """Of a column of `runs`; the first row of the table above that it fits."""
    return next((direction for pattern, direction in _RULES if re.search(pattern, metric)), _NEITHER)
