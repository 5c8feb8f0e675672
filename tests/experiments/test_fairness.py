"""Service gaps, followed step by step, against a look at every interval of a run; and Jain's index."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from virtual_engine import make_engine

from experiments.drive import drive
from experiments.fairness import MAX_CLIENTS, ServiceGap, Shares
from experiments.observe import SeenRunner
from experiments.workloads.base import WorkloadItem
from minivllm.engine import Engine
from minivllm.plan import StepPlan, StepReport
from minivllm.request import Request
from minivllm.sampling_params import SamplingParams


class _Follows:
    """Follows the gap, and notes after each step what every client has and whether it waited while the step ran."""

    def __init__(self, engine: Engine, clients: int) -> None:
        self.engine, self.gap = engine, ServiceGap(engine)
        self._requests: dict[int, Request] = {}
        self._reached: dict[int, int] = {}
        self._clients = clients
        self.service = [[0] * clients]
        self.waited: list[list[bool]] = []

    def at_launch(self, plan: StepPlan) -> float:
        waiting = {request.client_id for request in self.engine.scheduler.waiting}
        self.waited.append([client in waiting for client in range(self._clients)])
        return 1.0

    def on_sent(self, request_ids: tuple[int, ...], client_id: int) -> None:
        self.gap.on_sent(request_ids, client_id)
        for request_id in request_ids:
            request = self.engine.request(request_id)
            assert request is not None
            self._requests[request_id] = request

    def on_step(self, report: StepReport) -> None:
        assert isinstance(self.engine.runner, SeenRunner) and self.engine.runner.plan is not None
        self.gap.on_step(self.engine.runner.plan, report)
        service = [0] * self._clients
        for request_id, request in self._requests.items():
            computed = request.num_prompt_tokens if request.finished else request.num_computed_tokens
            reached = max(self._reached.get(request_id, 0), min(computed, request.num_prompt_tokens))
            self._reached[request_id] = reached
            cached = min(request.num_cached_tokens, reached)
            service[request.client_id] += reached - cached + 2 * request.num_output_tokens
        self.service.append(service)

    def on_request(self, request: Request, lateness_s: float | None) -> None:
        self.gap.on_finish(request)

    def largest(self) -> float:
        """Over all pairs of clients and all intervals in which both wait."""
        found = 0
        for a, b in itertools.combinations(range(self._clients), 2):
            for first in range(len(self.waited)):
                for last in range(first, len(self.waited)):
                    if not (self.waited[last][a] and self.waited[last][b]):
                        break
                    before, after = self.service[first], self.service[last + 1]
                    found = max(found, abs((after[a] - before[a]) - (after[b] - before[b])))
        return found


def _follow(items: list[WorkloadItem], clients: int, **engine: Any) -> _Follows:
    made = make_engine(step_s=lambda plan: follows.at_launch(plan), **engine)
    follows = _Follows(made, clients)
    made.runner = SeenRunner(made.runner)
    drive(made, items, SamplingParams(temperature=0), concurrency=None, listener=follows)
    return follows


@settings(max_examples=30, deadline=None)
@given(
    drawn=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 14), st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=14
    ),
    seats=st.integers(1, 4),
    blocks=st.sampled_from([7, 10, 64]),
    prefix_caching=st.booleans(),
)
# Who waits is a request that was preempted.
@example(drawn=[(0, 1, 5, 0), (0, 1, 5, 0), (0, 10, 4, 0), (1, 1, 1, 0)], seats=3, blocks=7, prefix_caching=False)
def test_the_gap_is_the_largest_over_every_interval(
    drawn: list[tuple[int, int, int, int]], seats: int, blocks: int, prefix_caching: bool
) -> None:
    arrivals = np.cumsum([gap for *_, gap in drawn])
    items = [
        WorkloadItem(
            prompt_token_ids=(1,) * num_prompt, max_tokens=num_output, client_id=client, arrival_s=float(arrival)
        )
        for (client, num_prompt, num_output, _), arrival in zip(drawn, arrivals, strict=True)
    ]
    follows = _follow(
        items,
        3,
        num_blocks=blocks,
        prefix_caching=prefix_caching,
        max_num_seqs=seats,
        max_num_batched_tokens=8,
    )
    several = len({client for client, *_ in drawn}) > 1
    assert follows.gap.largest_tokens == (follows.largest() if several else None)


def test_first_come_first_served_lets_a_flood_starve_the_other_client() -> None:
    flood = [WorkloadItem(prompt_token_ids=(1,) * 5, max_tokens=4, client_id=0, arrival_s=0.0) for _ in range(10)]
    other = [WorkloadItem(prompt_token_ids=(2,) * 5, max_tokens=4, client_id=1, arrival_s=0.0) for _ in range(2)]
    follows = _follow([*flood, *other], 2, max_num_seqs=1)
    # Nine of the flood are served while both wait (the tenth runs while nobody of the flood waits): 5 + 2 x 4 each.
    assert follows.gap.largest_tokens == 9 * 13


def test_more_clients_than_are_looked_at_cost_no_error() -> None:
    items = [
        WorkloadItem(prompt_token_ids=(1, 2), max_tokens=2, client_id=i, arrival_s=0.0) for i in range(MAX_CLIENTS + 9)
    ]
    # Whoever has one request gets nothing while it waits.
    assert _follow(items, MAX_CLIENTS + 9, max_num_seqs=2).gap.largest_tokens == 0


def _shares(*requests: tuple[int, int, int, float, float]) -> float | None:
    shares = Shares()
    for block in (requests[:2], requests[2:]):
        client, num_prompt, num_output, arrival_s, finish_s = (list(x) for x in zip(*block, strict=True))
        shares.add(client, *(np.array(x) for x in (num_prompt, num_output, arrival_s, finish_s)))  # type: ignore[arg-type]
    return shares.jain()


def test_jains_index_is_over_rates_of_service() -> None:
    # Both get 30 weighted tokens a second, one for three times as long.
    assert _shares((0, 10, 10, 0.0, 1.0), (1, 30, 0, 2.0, 3.0), (1, 0, 30, 3.0, 5.0)) == pytest.approx(1)
    # Rates 10, 20 and 60.
    assert _shares((0, 10, 0, 0, 1), (1, 20, 0, 0, 1), (2, 60, 0, 0, 1)) == pytest.approx(90**2 / (3 * 4100))
    assert _shares((4, 1, 1, 0, 1), (4, 1, 1, 0, 1), (4, 1, 1, 0, 1)) is None
