"""Weibull gaps: with a shape below 1 their tail is heavier than an exponential one, as ServeGen found in traffic of
language models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from experiments.workloads.arrivals.base import Renewal
from experiments.workloads.draws import is_number
from minivllm.config import require


@dataclass(frozen=True, kw_only=True)
class Weibull(Renewal):
    """Gaps of a Weibull distribution with mean 1 / (`rate_rps` * `rate_scale`).

    Args:
        shape: 1 is a Poisson process, less is more bursty.

    Source: ServeGen, arXiv 2505.09999.
    """

    shape: float

    def __post_init__(self) -> None:
        Renewal.__post_init__(self)
        # Below, the mean lies in gaps that come once in a million requests.
        require(is_number(self.shape) and self.shape >= 0.1, "arrivals.shape", self.shape, "a number, 0.1 or more")

    def gaps(self, size: int, generator: np.random.Generator) -> np.ndarray:
        scale = self.mean_gap_s / math.gamma(1 + 1 / self.shape)
        return generator.weibull(self.shape, size=size) * scale
