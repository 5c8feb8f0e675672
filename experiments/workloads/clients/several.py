"""Clients who share one stream of requests: chance decides whose each is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np

from experiments.workloads.arrivals.base import Arrivals
from experiments.workloads.clients.base import Sender
from experiments.workloads.draws import Weighted, endless, is_list, is_number
from minivllm.config import is_count, require


class Several:
    """Each request is sent by client i with a probability proportional to its share, whatever the others were. Of
    Poisson arrivals each client then sends a Poisson process of its own.

    Args:
        num_clients: how many.
        shares: one a client; null where the exponent gives them.
        zipf_exponent: the share of client i is (i + 1) ** -zipf_exponent; 0 makes all alike.
        priorities: probability of each priority, in proportion; null leaves the workload's own.
    """

    def __init__(
        self,
        *,
        num_clients: int,
        shares: Sequence[float] | None = None,
        zipf_exponent: float = 0.0,
        priorities: Mapping[int, float] | None = None,
    ) -> None:
        require(is_count(num_clients), "clients.num_clients", num_clients, "a whole number, 1 or more")
        valid = is_number(zipf_exponent) and zipf_exponent >= 0
        require(valid, "clients.zipf_exponent", zipf_exponent, "a number, 0 or more")
        if shares is None:
            shares = [place**-zipf_exponent for place in range(1, num_clients + 1)]
        else:
            require(not zipf_exponent, "clients.zipf_exponent", zipf_exponent, "0 where clients.shares are given")
            fits = is_list(shares) and len(shares) == num_clients and _are_weights(shares)
            require(fits, "clients.shares", shares, f"null or {num_clients} numbers, 0 or more and not all 0")
        self._clients = Weighted(shares)
        self._priorities = None
        if priorities is not None:
            fits = isinstance(priorities, Mapping) and _are_weights(list(priorities.values()))
            fits = fits and all(isinstance(priority, int) for priority in priorities)
            require(fits, "clients.priorities", priorities, "null or {whole number: probability}")
            self._priorities = np.array(list(priorities)), Weighted(list(priorities.values()))

    def senders(
        self, arrivals: Arrivals | None, times: np.random.Generator, clients: np.random.Generator
    ) -> Iterator[Sender]:
        who, urgency = clients.spawn(2)
        due: Iterator[float | None] = repeat(None) if arrivals is None else arrivals.times(times)
        ids = endless(lambda size: self._clients.draw(size, who))
        levels: Iterator[int | None] = repeat(None)
        if self._priorities is not None:
            values, weights = self._priorities
            levels = endless(lambda size: values[weights.draw(size, urgency)])
        return map(Sender, due, ids, levels)


def _are_weights(values: Sequence[object]) -> bool:
    return all(is_number(value) and float(value) >= 0 for value in values) and any(values)  # type: ignore[arg-type]
