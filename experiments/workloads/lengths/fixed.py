"""One length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.workloads.lengths.base import require_tokens


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Always `num_tokens`."""

    num_tokens: int

    def __post_init__(self) -> None:
        require_tokens("num_tokens", self.num_tokens)

    def draw(self, size: int, generator: np.random.Generator) -> np.ndarray:
        return np.full(size, self.num_tokens, dtype=np.int64)
