"""Figures as every report writes them."""

from __future__ import annotations

import math


def ratio_text(ratio: float, low: float = math.nan, high: float = math.nan) -> str:
    """`0.61× [0.58, 0.64]`: as many digits as the interval is worth, two at least and four at most."""
    if ratio is None or math.isnan(ratio):
        return "–"
    known = not (math.isnan(low) or math.isnan(high))
    near = abs(ratio - 1) < 0.1 if not known else (high - low) < 0.04 * ratio
    digits = 0 if ratio >= 100 else 1 if ratio >= 20 else 3 if near or ratio < 0.1 else 2
    if known and 0 < high - low < 0.002 * ratio < 0.02:
        digits = 4
    text = f"{ratio:.{digits}f}×"
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]" if known else text


def few(value: float) -> str:
    """Two digits of a figure whose size may be any: `0.0010`, `2.2e-05`."""
    return "–" if math.isnan(value) else f"{value:#.2g}".rstrip(".")


def many(count: int, noun: str) -> str:
    """`1 point`, `2 points`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
