"""Clients send their share, each of them the process that it should, and not while they rest."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
from loads import NUM_DRAWS, check_counts, check_distribution
from scipy import stats

from experiments.workloads.arrivals.base import Arrivals
from experiments.workloads.arrivals.closed_loop import ClosedLoop
from experiments.workloads.arrivals.constant import Constant
from experiments.workloads.arrivals.gamma import Gamma
from experiments.workloads.arrivals.poisson import Poisson
from experiments.workloads.clients.base import Clients
from experiments.workloads.clients.several import Several
from experiments.workloads.clients.sources import Sources


def _senders(clients: Clients, arrivals: Arrivals | None, count: int, seed: int = 0) -> np.ndarray:
    """[count, 3]: time, client, priority; what is None is not a number."""
    streams = np.random.default_rng(seed).spawn(2)
    found = array("d")
    # Kept as numbers: a list of tuples keeps the garbage collector busy.
    for sender in islice(clients.senders(arrivals, *streams), count):
        found.extend(math.nan if value is None else value for value in sender)
    return np.asarray(found).reshape(count, 3)


@pytest.mark.parametrize(
    ("clients", "shares"),
    [
        (Several(num_clients=3), [1, 1, 1]),
        (Several(num_clients=4, shares=[1, 0, 2.5, 1.5]), [1, 0, 2.5, 1.5]),
        (Several(num_clients=50, zipf_exponent=1.2), [i**-1.2 for i in range(1, 51)]),
    ],
    ids=["equal", "shares", "zipf"],
)
def test_each_client_sends_its_share(clients: Several, shares: list[float]) -> None:
    ids = _senders(clients, None, NUM_DRAWS)[:, 1].astype(int)
    whole = sum(shares)
    check_counts(ids, {client: share / whole for client, share in enumerate(shares) if share})
    # The next sender does not depend on the last one.
    same = sum((share / whole) ** 2 for share in shares)
    assert stats.binomtest(int((ids[1:] == ids[:-1]).sum()), ids.size - 1, same).pvalue > 0.001


def test_of_poisson_arrivals_each_client_has_a_poisson_process() -> None:
    found = _senders(Several(num_clients=2, shares=[3, 1]), Poisson(rate_rps=8.0), NUM_DRAWS)
    for client, rate in ((0, 6.0), (1, 2.0)):
        check_distribution(np.diff(found[found[:, 1] == client, 0]), stats.expon(scale=1 / rate))


def test_priorities_come_with_their_probabilities_and_tell_nothing_of_clients() -> None:
    found = _senders(Several(num_clients=2, priorities={0: 0.2, 5: 0.5, -1: 0.3}), None, NUM_DRAWS)
    clients, priorities = found[:, 1].astype(int), found[:, 2].astype(int)
    check_counts(priorities, {0: 0.2, 5: 0.5, -1: 0.3})
    for client in (0, 1):
        check_counts(priorities[clients == client], {0: 0.2, 5: 0.5, -1: 0.3})
    assert np.array_equal(clients[:3000], _senders(Several(num_clients=2), None, 3000)[:, 1])


def test_priorities_that_are_not_given_are_left_to_the_workload() -> None:
    assert np.isnan(_senders(Several(num_clients=2), None, 5)[:, 2]).all()


def test_sources_send_at_their_own_rates_in_one_order() -> None:
    sources = Sources(sources=[{"rate_multiplier": 3.0, "priority": 2}, {"num_clients": 2, "rate_multiplier": 0.5}])
    found = _senders(sources, Poisson(rate_rps=2.0), NUM_DRAWS)
    assert np.all(np.diff(found[:, 0]) >= 0)
    assert set(map(tuple, found[:, 1:].tolist())) == {(0.0, 2.0), (1.0, 0.0), (2.0, 0.0)}
    for client, rate in ((0, 6.0), (1, 1.0), (2, 1.0)):
        check_distribution(np.diff(found[found[:, 1] == client, 0]), stats.expon(scale=1 / rate))
    # Poisson processes together are one.
    check_distribution(np.diff(found[:, 0]), stats.expon(scale=1 / 8))


def test_gaps_are_as_even_as_each_source_alone_has_them() -> None:
    even = Gamma(rate_rps=1.0, cv=0.5)
    found = _senders(Sources(sources=[{}, {"rate_multiplier": 2.0}]), even, NUM_DRAWS // 4)
    check_distribution(np.diff(found[found[:, 1] == 1, 0]), stats.gamma(4, scale=0.125))


def test_a_source_rests_and_goes_on() -> None:
    resting = {"start_s": 5.0, "on_s": 10.0, "off_s": 30.0}
    found = _senders(Sources(sources=[resting, {}]), Poisson(rate_rps=4.0), NUM_DRAWS // 4)
    times = found[found[:, 1] == 0, 0] - 5.0
    rounds, into = np.divmod(times, 40.0)
    assert times.min() > 0 and into.max() < 10.0
    assert stats.kstest(into / 10, "uniform").pvalue > 0.001
    # What is left without the rests is the process itself.
    check_distribution(np.diff(rounds * 10 + into), stats.expon(scale=1 / 4))
    steady = found[found[:, 1] == 1, 0]
    assert abs(steady.size / steady[-1] / 4 - 1) < 4 / np.sqrt(steady.size)


def test_constant_sources_alternate_and_ties_go_to_the_first() -> None:
    found = _senders(Sources(sources=[{}, {"start_s": 0.5}, {}]), Constant(rate_rps=1.0), 6)
    assert found[:, :2].tolist() == [[1.0, 0], [1.0, 2], [1.5, 1], [2.0, 0], [2.0, 2], [2.5, 1]]


def test_another_source_does_not_shift_the_first() -> None:
    one = _senders(Sources(sources=[{}]), Poisson(rate_rps=1.0), 500)
    two = _senders(Sources(sources=[{}, {"rate_multiplier": 3.0}]), Poisson(rate_rps=1.0), 500)
    mine = two[two[:, 1] == 0, 0]
    assert np.array_equal(mine, one[: mine.size, 0])


@pytest.mark.parametrize("arrivals", [None, ClosedLoop(concurrency=3)])
def test_sources_need_arrivals_with_a_rate(arrivals: Arrivals | None) -> None:
    with pytest.raises(ValueError, match=r"clients=sources: .*choose arrivals=poisson"):
        _senders(Sources(sources=[{}]), arrivals, 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Several(num_clients=0), "clients.num_clients=0: must be a whole number, 1 or more"),
        (lambda: Several(num_clients=2, zipf_exponent=-1), "clients.zipf_exponent=-1: must be a number, 0 or more"),
        (lambda: Several(num_clients=2, shares=[1]), "clients.shares=[1]: must be null or 2 numbers"),
        (lambda: Several(num_clients=2, shares=[0, 0]), "clients.shares=[0, 0]"),
        (lambda: Several(num_clients=2, shares=[1, -1]), "clients.shares=[1, -1]"),
        (lambda: Several(num_clients=2, shares=[1, 1], zipf_exponent=1), "0 where clients.shares are given"),
        (lambda: Several(num_clients=2, priorities={}), "clients.priorities={}: must be null or {whole number"),
        (lambda: Several(num_clients=2, priorities={"urgent": 1}), "clients.priorities={'urgent': 1}"),
        (lambda: Several(num_clients=2, priorities={0: -0.5, 1: 1.5}), "clients.priorities={0: -0.5, 1: 1.5}"),
        (lambda: Sources(sources=[]), "clients.sources=[]: must be a list"),
        (lambda: Sources(sources=[{"rate": 1}]), "clients.sources[0]={'rate': 1}: is no source"),
        (lambda: Sources(sources=[{}, {"on_s": 0}]), "clients.sources[1]={'on_s': 0}: is no source: on_s=0: must be"),
        (lambda: Sources(sources=[{"num_clients": 0}]), "num_clients=0: must be a whole number, 1 or more"),
        (lambda: Sources(sources=[{"off_s": -1}]), "off_s=-1: must be a number, 0 or more"),
        (lambda: Sources(sources=[{"rate_multiplier": 0}]), "rate_multiplier=0: must be a number above 0"),
        (lambda: Sources(sources=[{"priority": 0.5}]), "priority=0.5: must be a whole number"),
    ],
)
def test_impossible_clients_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert says in str(caught.value) and "\n" not in str(caught.value)
