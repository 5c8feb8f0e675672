"""A power law over a range: most are short, and a few are very long."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from experiments.workloads.draws import Weighted, is_number
from experiments.workloads.lengths.base import require_tokens
from minivllm.config import require


@dataclass(frozen=True, kw_only=True)
class Zipf:
    """A length n has a probability proportional to n ** -exponent.

    Args:
        exponent: 0 is uniform.
        min_tokens, max_tokens: shortest and longest.
    """

    exponent: float
    min_tokens: int
    max_tokens: int

    def __post_init__(self) -> None:
        require(is_number(self.exponent) and self.exponent >= 0, "exponent", self.exponent, "a number, 0 or more")
        require_tokens("min_tokens", self.min_tokens)
        require_tokens("max_tokens", self.max_tokens, least=self.min_tokens)

    @cached_property
    def _places(self) -> Weighted:
        # Relative to the shortest, so that no weight of a large exponent vanishes.
        return Weighted((np.arange(self.min_tokens, self.max_tokens + 1) / self.min_tokens) ** -float(self.exponent))

    def draw(self, size: int, generator: np.random.Generator) -> np.ndarray:
        return self.min_tokens + self._places.draw(size, generator)
