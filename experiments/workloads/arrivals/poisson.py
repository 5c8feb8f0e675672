"""Requests of many users who know nothing of each other: exponential gaps, as many requests in a minute as chance has
it, with a variance equal to the mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.workloads.arrivals.base import Renewal


@dataclass(frozen=True, kw_only=True)
class Poisson(Renewal):
    """A Poisson process of `rate_rps`."""

    def gaps(self, size: int, generator: np.random.Generator) -> np.ndarray:
        return generator.exponential(self.mean_gap_s, size=size)
