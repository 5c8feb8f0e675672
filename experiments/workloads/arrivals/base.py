"""The seam of arrivals. Gaps are what their distribution gives: none is capped, for a cap changes the load."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np

from experiments.workloads.draws import BLOCK, require_positive


class Arrivals(Protocol):
    """When each request is due."""

    @property
    def concurrency(self) -> int | None:
        """Clients of a closed loop; None where requests come by the clock."""
        ...

    def times(self, generator: np.random.Generator) -> Iterator[float | None]:
        """Seconds from the start, never decreasing, or None for "as soon as a client is free". Endless, or as many as
        there are."""
        ...


@runtime_checkable
class Scalable(Arrivals, Protocol):
    """Arrivals with a rate, of which there can be more or less."""

    def scaled(self, factor: float) -> Arrivals:
        """The same process at `factor` times the rate."""
        ...


RenewalType = TypeVar("RenewalType", bound="Renewal")


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """Independent gaps of one distribution. The first request comes after a gap too.

    Args:
        rate_rps: requests a second; the mean gap is one over it.
        rate_scale: times that, for loads that are fractions of what an engine carries.
    """

    rate_rps: float
    rate_scale: float = 1.0
    concurrency: ClassVar[None] = None

    def __post_init__(self) -> None:
        require_positive("arrivals.rate_rps", self.rate_rps)
        require_positive("arrivals.rate_scale", self.rate_scale)

    @property
    def mean_gap_s(self) -> float:
        return 1.0 / (self.rate_rps * self.rate_scale)

    def gaps(self, size: int, generator: np.random.Generator) -> np.ndarray:
        """Returns: [size] float64 seconds, 0 or more."""
        raise NotImplementedError

    def blocks(self, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """The times, some at once."""
        last = 0.0
        while True:
            # As one sum over all gaps would round.
            times = np.cumsum(np.concatenate(([last], self.gaps(BLOCK, generator))))[1:]
            last = float(times[-1])
            yield times

    def times(self, generator: np.random.Generator) -> Iterator[float | None]:
        for block in self.blocks(generator):
            yield from block.tolist()

    def scaled(self: RenewalType, factor: float) -> RenewalType:
        return dataclasses.replace(self, rate_scale=self.rate_scale * factor)
