"""Clients who each send requests of their own: at a rate of their own, all the time or now and then."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.workloads.arrivals.base import Arrivals, Scalable
from experiments.workloads.clients.base import Sender
from experiments.workloads.draws import is_list, is_number, require_positive
from minivllm.config import is_count, require


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Clients of one kind.

    Args:
        num_clients: how many.
        rate_multiplier: of the arrivals' rate, for each of them.
        start_s: when their first gap begins.
        on_s, off_s: they send for so long, then rest for so long, and so on; null for on_s: all the time. While they
            rest their clock stands still: a gap that was begun goes on when they are back.
        priority: of their requests.
    """

    num_clients: int = 1
    rate_multiplier: float = 1.0
    start_s: float = 0.0
    on_s: float | None = None
    off_s: float = 0.0
    priority: int = 0

    def __post_init__(self) -> None:
        require(is_count(self.num_clients), "num_clients", self.num_clients, "a whole number, 1 or more")
        require_positive("rate_multiplier", self.rate_multiplier)
        for name in ("start_s", "off_s"):
            value = getattr(self, name)
            require(is_number(value) and value >= 0, name, value, "a number, 0 or more")
        if self.on_s is not None:
            require_positive("on_s", self.on_s)
        whole = isinstance(self.priority, int) and not isinstance(self.priority, bool)
        require(whole, "priority", self.priority, "a whole number")

    def when(self, sending_s: float) -> float:
        """The instant at which a client has been sending for so long."""
        rests = 0 if self.on_s is None else int(sending_s // self.on_s)
        return self.start_s + sending_s + rests * self.off_s


class Sources:
    """All clients together send what each of them does: of Poisson arrivals, a Poisson process at the sum of their
    rates; bursts of other arrivals are each client's own, and even out over many clients.

    Args:
        sources: mappings, see `Source`; clients are numbered in this order.
    """

    def __init__(self, *, sources: Sequence[Mapping[str, Any]]) -> None:
        require(is_list(sources), "clients.sources", sources, "a list of {rate_multiplier, num_clients, on_s, off_s}")
        self._clients: list[Source] = []
        for place, one in enumerate(sources):
            try:
                source = Source(**one)
            except (TypeError, ValueError) as error:
                raise ValueError(f"clients.sources[{place}]={one!r}: is no source: {error}") from error
            self._clients += [source] * source.num_clients

    def senders(
        self, arrivals: Arrivals | None, times: np.random.Generator, clients: np.random.Generator
    ) -> Iterator[Sender]:
        if not isinstance(arrivals, Scalable):
            raise ValueError(
                "clients=sources: each client needs arrivals of its own rate; choose arrivals=poisson, gamma, weibull, "
                "constant or ramp"
            )
        own = times.spawn(len(self._clients))
        streams = [
            _stream(client_id, source, arrivals, generator)
            for client_id, (source, generator) in enumerate(zip(self._clients, own, strict=True))
        ]
        # At the same instant the client with the smaller number is first.
        return heapq.merge(*streams)


def _stream(client_id: int, source: Source, arrivals: Scalable, generator: np.random.Generator) -> Iterator[Sender]:
    for sending_s in arrivals.scaled(source.rate_multiplier).times(generator):
        assert sending_s is not None
        yield Sender(source.when(sending_s), client_id, source.priority)
