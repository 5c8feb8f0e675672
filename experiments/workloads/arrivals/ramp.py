"""A Poisson process whose rate changes: steps and ramps, once or over and over, such as days and nights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from experiments.workloads.arrivals.base import Arrivals
from experiments.workloads.arrivals.poisson import Poisson
from experiments.workloads.draws import is_list, is_number, require_positive
from minivllm.config import require


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of time.

    Args:
        duration_s: how long.
        rate_rps: requests a second, at its beginning.
        until_rps: at its end; in between the rate goes along a straight line. None: it stays what it is.
    """

    duration_s: float
    rate_rps: float
    until_rps: float | None = None

    def __post_init__(self) -> None:
        require_positive("duration_s", self.duration_s)
        require(is_number(self.rate_rps) and self.rate_rps >= 0, "rate_rps", self.rate_rps, "a number, 0 or more")
        until = self.until_rps
        require(until is None or is_number(until) and until >= 0, "until_rps", until, "null or a number, 0 or more")

    @property
    def end_rps(self) -> float:
        return self.rate_rps if self.until_rps is None else self.until_rps


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """Exact, by a change of time: the k-th request comes when the area under the rate reaches the k-th time of a
    Poisson process of rate 1.

    Args:
        phases: mappings {duration_s, rate_rps, until_rps}, see `Phase`.
        cycle: begin again after the last one; without it, the rate at its end goes on.
        rate_scale: times all rates.

    Source: Cinlar, Introduction to Stochastic Processes (1975), section 4.7.
    """

    phases: Sequence[Mapping[str, Any]]
    cycle: bool = False
    rate_scale: float = 1.0
    concurrency: ClassVar[None] = None

    def __post_init__(self) -> None:
        require(is_list(self.phases), "arrivals.phases", self.phases, "a list of {duration_s, rate_rps, until_rps}")
        require(isinstance(self.cycle, bool), "arrivals.cycle", self.cycle, "true or false")
        require_positive("arrivals.rate_scale", self.rate_scale)
        last = self._read()[-1]
        if self.cycle:
            some = any(phase.rate_rps or phase.end_rps for phase in self._read())
            require(some, "arrivals.phases", self.phases, "such that one has a rate above 0")
        else:
            require(last.end_rps > 0, "arrivals.phases", self.phases, "of a rate above 0 at the end, or cycle=true")

    def _read(self) -> list[Phase]:
        found = []
        for place, phase in enumerate(self.phases):
            try:
                found.append(Phase(**phase))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"arrivals.phases[{place}]={phase!r}: must be {{duration_s, rate_rps, until_rps}}: {error}"
                ) from error
        return found

    def times(self, generator: np.random.Generator) -> Iterator[float | None]:
        phases = self._read()
        durations_s = np.array([phase.duration_s for phase in phases])
        first_rps, last_rps = (
            self.rate_scale * np.array([getattr(phase, name) for phase in phases]) for name in ("rate_rps", "end_rps")
        )
        # Expected requests up to the end of each phase.
        areas = np.cumsum(durations_s * (first_rps + last_rps) / 2)
        whole_s, whole = durations_s.sum(), areas[-1]
        starts_s, before = np.cumsum(durations_s) - durations_s, np.concatenate(([0.0], areas[:-1]))
        for unit in Poisson(rate_rps=1.0).blocks(generator):
            rounds = np.floor(unit / whole) if self.cycle else np.zeros_like(unit)
            area = unit - rounds * whole
            at = np.minimum(np.searchsorted(areas, area, side="right"), len(phases) - 1)
            into = np.maximum(area - before[at], 0.0)
            # The time t at which rate x t + slope x t^2 / 2 is the area, in a form that a slope of 0 does not disturb.
            rate, slope = first_rps[at], (last_rps - first_rps)[at] / durations_s[at]
            below = rate + np.sqrt(np.maximum(rate**2 + 2 * slope * into, 0.0))
            passed_s = np.divide(2 * into, below, out=np.zeros_like(into), where=below > 0)
            times = rounds * whole_s + starts_s[at] + np.minimum(passed_s, durations_s[at])
            if not self.cycle:
                beyond = area > whole
                times[beyond] = whole_s + (area[beyond] - whole) / last_rps[-1]
            yield from times.tolist()

    def scaled(self, factor: float) -> Arrivals:
        return dataclasses.replace(self, rate_scale=self.rate_scale * factor)
