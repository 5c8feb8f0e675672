"""A fixed number of clients, each of which sends its next request when its last one is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from minivllm.config import is_count, require


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """No times: the engine sets the pace.

    Args:
        concurrency: clients.
    """

    concurrency: int

    def __post_init__(self) -> None:
        require(is_count(self.concurrency), "arrivals.concurrency", self.concurrency, "a whole number, 1 or more")

    def times(self, generator: np.random.Generator) -> Iterator[float | None]:
        return repeat(None)
