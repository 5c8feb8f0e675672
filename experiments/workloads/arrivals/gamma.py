"""Gamma gaps: more bursty than a Poisson process, or less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.workloads.arrivals.base import Renewal
from experiments.workloads.draws import require_positive
from minivllm.config import require


@dataclass(frozen=True, kw_only=True)
class Gamma(Renewal):
    """Gaps of a gamma distribution with mean 1 / (`rate_rps` * `rate_scale`). Given is one of:

    Args:
        burstiness: its shape: 1 is a Poisson process, less is more bursty, a large one comes near a constant rate.
        cv: coefficient of variation of the gaps, 1 / sqrt(burstiness).

    Source: `--burstiness` of `vllm bench serve`.
    """

    burstiness: float | None = None
    cv: float | None = None

    def __post_init__(self) -> None:
        Renewal.__post_init__(self)
        require(
            (self.burstiness is None) != (self.cv is None),
            "arrivals.burstiness",
            self.burstiness,
            f"given or null, whichever arrivals.cv={self.cv} is not",
        )
        name = "cv" if self.burstiness is None else "burstiness"
        require_positive(f"arrivals.{name}", getattr(self, name))

    def gaps(self, size: int, generator: np.random.Generator) -> np.ndarray:
        shape = self.burstiness if self.cv is None else self.cv**-2
        assert shape is not None
        return generator.gamma(shape, self.mean_gap_s / shape, size=size)
