"""Every length in a range alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.workloads.lengths.base import require_tokens


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """From `min_tokens` to `max_tokens`, both included."""

    min_tokens: int
    max_tokens: int

    def __post_init__(self) -> None:
        require_tokens("min_tokens", self.min_tokens)
        require_tokens("max_tokens", self.max_tokens, least=self.min_tokens)

    def draw(self, size: int, generator: np.random.Generator) -> np.ndarray:
        return generator.integers(self.min_tokens, self.max_tokens, size=size, endpoint=True)
