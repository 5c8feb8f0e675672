"""The seam of clients: each request gets a sender, and where senders have a pace of their own, its time too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from experiments.workloads.arrivals.base import Arrivals


class Sender(NamedTuple):
    """Who sends a request, and when.

    Args:
        arrival_s: as `Arrivals.times` says; of no meaning where no arrivals were given.
        client_id: from 0.
        priority: lower is more urgent; None leaves the workload's own.
    """

    arrival_s: float | None
    client_id: int
    priority: int | None


class Clients(Protocol):
    """Senders of requests."""

    def senders(
        self, arrivals: Arrivals | None, times: np.random.Generator, clients: np.random.Generator
    ) -> Iterator[Sender]:
        """One for each request that follows no other, in the order of their arrival.

        Args:
            arrivals: when requests come; None where the workload says so itself.
            times, clients: all chance in when they come, and in who sends them.
        """
        ...
