"""Requests at equal distances: a load without chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from experiments.workloads.arrivals.base import Renewal


@dataclass(frozen=True, kw_only=True)
class Constant(Renewal):
    """Gaps of exactly 1 / (`rate_rps` * `rate_scale`)."""

    def times(self, generator: np.random.Generator) -> Iterator[float | None]:
        # Quotients, for a sum of a million gaps drifts.
        return (place / (self.rate_rps * self.rate_scale) for place in count(1))
