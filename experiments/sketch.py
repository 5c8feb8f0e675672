"""Mean and percentiles of more values than fit into memory.

Up to a number of values they are exact: all are kept. Beyond it they are counted in bins, 1024 to each power of two
(the first bits of a float are its bin), so that a percentile is off by less than a thousandth of itself; the mean
stays exact. Values are times: 0 or more, and what lies under a nanosecond counts as one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_EXACT = 1_000_000
_SMALLEST, _LARGEST = 1e-9, 1e9
# Of a float64's 52 bits behind the exponent, those that do not matter.
_SHIFT = 42
_FIRST, _LAST = (int(np.float64(value).view(np.int64)) >> _SHIFT for value in (_SMALLEST, _LARGEST))


class Sketch:
    """Args:
    num_exact: values up to which percentiles are exact.
    """

    def __init__(self, num_exact: int = NUM_EXACT) -> None:
        self._num_exact = num_exact
        self._kept: list[np.ndarray] = []
        self._counts: np.ndarray | None = None
        self._total = 0.0
        self.count = 0

    def add(self, values: np.ndarray) -> None:
        """Args:
        values: [n] float64; NaN stands for what is missing, and is passed over.
        """
        known = values[~np.isnan(values)]
        if not known.size:
            return
        self.count += known.size
        self._total += float(known.sum())
        self._kept.append(known)
        if self._counts is not None or self.count > self._num_exact:
            self._spill()

    def _spill(self) -> None:
        if self._counts is None:
            self._counts = np.zeros(_LAST - _FIRST + 1, dtype=np.int64)
        for values in self._kept:
            bins = (np.clip(values, _SMALLEST, _LARGEST).view(np.int64) >> _SHIFT) - _FIRST
            self._counts += np.bincount(bins, minlength=len(self._counts))
        self._kept = []

    @property
    def mean(self) -> float | None:
        if self._counts is None and self.count:
            return float(np.concatenate(self._kept).mean())
        return self._total / self.count if self.count else None

    def percentiles(self, percents: Sequence[float]) -> list[float | None]:
        """Between two values it is interpolated, as numpy does."""
        if not self.count:
            return [None] * len(percents)
        if self._counts is None:
            return [float(value) for value in np.percentile(np.concatenate(self._kept), percents)]
        places = np.asarray(percents) / 100 * (self.count - 1)
        low = np.floor(places)
        below, above = self._values_at(low), self._values_at(np.minimum(low + 1, self.count - 1))
        return [float(value) for value in below + (above - below) * (places - low)]

    def _values_at(self, ranks: np.ndarray) -> np.ndarray:
        """The values at places in ascending order."""
        assert self._counts is not None
        bins = np.searchsorted(np.cumsum(self._counts), ranks, side="right")
        # The middle of a bin.
        return (((bins + _FIRST) << _SHIFT) + (1 << (_SHIFT - 1))).astype(np.int64).view(np.float64)


def summary(what: str, sketch: Sketch) -> dict[str, float | None]:
    """Columns of `runs`: mean and percentiles in seconds; null where there is nothing to summarize."""
    p50, p90, p99 = sketch.percentiles((50, 90, 99))
    return {
        f"{what}_mean_s": sketch.mean,
        f"{what}_p50_s": p50,
        f"{what}_p90_s": p90,
        f"{what}_p99_s": p99,
    }
