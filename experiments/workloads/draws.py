"""Numbers drawn in blocks and handed out one by one: as fast as arrays, and nothing grows with their count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from minivllm.config import require

BLOCK = 1024


def endless(draw: Callable[[int], np.ndarray]) -> Iterator:
    """What `draw(count)` gives, without an end. How it is cut into blocks changes nothing that numpy draws."""
    while True:
        yield from draw(BLOCK).tolist()


def is_number(value: object) -> bool:
    """A finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_list(value: object) -> bool:
    """A list with something in it."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def require_positive(key: str, value: object) -> None:
    """Raises the ValueError of a value that is no number above 0."""
    require(is_number(value) and float(value) > 0, key, value, "a number above 0")  # type: ignore[arg-type]


class Weighted:
    """Places of a list, each drawn with a probability proportional to its weight.

    Args:
        weights: above or at 0, and not all 0.
    """

    def __init__(self, weights: Sequence[float] | np.ndarray) -> None:
        sums = np.cumsum(np.asarray(weights, dtype=np.float64))
        assert sums.size and sums[-1] > 0
        # The last is exactly 1, which no draw of [0, 1) reaches.
        self._sums = sums / sums[-1]

    def draw(self, size: int, generator: np.random.Generator) -> np.ndarray:
        """Returns: [size] int64 places."""
        return np.searchsorted(self._sums, generator.random(size), side="right")
