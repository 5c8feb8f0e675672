"""Lengths whose logarithm is normal: the usual shape of what people ask of language models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from experiments.workloads.draws import is_number, require_positive
from experiments.workloads.lengths.base import MOST_REFUSED, require_tokens
from minivllm.config import require

# Of the standard normal distribution.
_P99 = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True, kw_only=True)
class Lognormal:
    """A lognormal number, rounded to the nearest whole one. Given are one of the first two and one of the next two;
    all four are of the distribution without its bounds.

    Args:
        median_tokens, mean_tokens: its middle.
        sigma, p99_tokens: its width: standard deviation of the logarithm, or the 99th percentile.
        min_tokens, max_tokens: shortest and longest.
        outside: `redraw` draws again what lies outside of the bounds, so that the rest keeps its shape and the mean is
            below the unbounded one; `clip` makes it the nearest bound, so that there are many of exactly that length.
    """

    median_tokens: float | None = None
    mean_tokens: float | None = None
    sigma: float | None = None
    p99_tokens: float | None = None
    min_tokens: int = 1
    max_tokens: int
    outside: str = "redraw"

    def __post_init__(self) -> None:
        for one, other in (("median_tokens", "mean_tokens"), ("sigma", "p99_tokens")):
            value, instead = getattr(self, one), getattr(self, other)
            allowed = f"given or null, whichever {other}={instead} is not"
            require((value is None) != (instead is None), one, value, allowed)
        for name in ("median_tokens", "mean_tokens", "p99_tokens"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        require(self.sigma is None or (is_number(self.sigma) and self.sigma >= 0), "sigma", self.sigma, "0 or more")
        require_tokens("min_tokens", self.min_tokens)
        require_tokens("max_tokens", self.max_tokens, least=self.min_tokens)
        require(self.outside in ("redraw", "clip"), "outside", self.outside, "redraw or clip")
        self.parameters()

    def parameters(self) -> tuple[float, float]:
        """Mean and standard deviation of the logarithm."""
        middle = math.log(self.median_tokens or self.mean_tokens or 0.0)
        sigma = self.sigma
        if sigma is None:
            assert self.p99_tokens is not None
            above = math.log(self.p99_tokens) - middle
            require(above >= 0, "p99_tokens", self.p99_tokens, "at least the median or the mean")
            if self.mean_tokens is None:
                sigma = above / _P99
            else:
                # The mean's logarithm is middle = mu + sigma^2 / 2, the percentile's mu + _P99 sigma.
                inside = _P99**2 - 2 * above
                most = self.mean_tokens * math.exp(_P99**2 / 2)
                require(inside >= 0, "p99_tokens", self.p99_tokens, f"at most {most:.0f} with this mean")
                sigma = _P99 - math.sqrt(inside)
        return middle - (sigma**2 / 2 if self.median_tokens is None else 0.0), sigma

    def draw(self, size: int, generator: np.random.Generator) -> np.ndarray:
        found = self._raw(size, generator)
        if self.outside == "clip":
            return np.clip(found, self.min_tokens, self.max_tokens).astype(np.int64)
        refused = 0
        while (wrong := np.flatnonzero((found < self.min_tokens) | (found > self.max_tokens))).size:
            refused = refused + wrong.size if wrong.size == size else 0
            within = f"such that lengths fall into min_tokens={self.min_tokens} to max_tokens; hardly any does"
            require(refused < MOST_REFUSED, "max_tokens", self.max_tokens, within)
            found[wrong] = self._raw(wrong.size, generator)
        return found.astype(np.int64)

    def _raw(self, size: int, generator: np.random.Generator) -> np.ndarray:
        mu, sigma = self.parameters()
        return np.rint(generator.lognormal(mu, sigma, size=size))
