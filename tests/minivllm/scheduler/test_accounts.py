"""Policies that keep an account of what happened: fair shares by client, and feedback queues."""

from __future__ import annotations

from collections import defaultdict

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from policies import Bench, Job

from minivllm.sampling_params import SamplingParams
from minivllm.scheduler.vtc import VirtualTokenCounter

_few = settings(max_examples=12, deadline=None, derandomize=True)
_PROMPT_WEIGHT, _OUTPUT_WEIGHT = 1.0, 2.0


def _service_gaps(bench: Bench, jobs: list[Job]) -> tuple[float, int]:
    """(widest gap of service between two clients since both had requests waiting, steps in which they did).

    Counted here, from what the engine says: a prompt when its request runs first, an output token when it comes.
    """
    service: dict[int, float] = defaultdict(float)
    let_in: set[int] = set()
    widest, num_steps = 0.0, 0
    clients = {job.client_id for job in jobs}
    while bench.is_busy:
        bench.step()
        scheduler = bench.engine.scheduler
        for request in [*scheduler.running, *bench.finished]:
            if request.request_id not in let_in:
                let_in.add(request.request_id)
                service[request.client_id] += _PROMPT_WEIGHT * request.num_prompt_tokens
        for request_id, token_ids in bench.emitted[-1]:
            service[jobs[request_id].client_id] += _OUTPUT_WEIGHT * len(token_ids)
        if {request.client_id for request in scheduler.waiting} < clients:
            # From here on one of them gets all that it asks for.
            break
        num_steps += 1
        widest = max(widest, max(service[c] for c in clients) - min(service[c] for c in clients))
    return widest, num_steps


def _backlogs(draw_lengths, num_each: list[int]) -> list[Job]:
    """All there from the start, client by client."""
    return [
        Job(num_prompt_tokens=draw_lengths(), num_output_tokens=draw_lengths(), client_id=client)
        for client, count in enumerate(num_each)
        for _ in range(count)
    ]


@_few
@given(data=st.data())
def test_vtc_bounds_the_service_gap_of_clients_that_wait(data) -> None:
    longest, num_blocks = 9, 12
    jobs = _backlogs(lambda: data.draw(st.integers(1, longest)), [data.draw(st.integers(3, 12)) for _ in range(3)])
    bench = Bench(jobs, "vtc.VirtualTokenCounter", max_num_seqs=4, num_blocks=num_blocks)
    widest, _ = _service_gaps(bench, jobs)
    # Theorem 4.4 of the paper: twice the bound of the counters.
    assert widest <= 2 * max(_PROMPT_WEIGHT * longest, _OUTPUT_WEIGHT * num_blocks * 4)


def test_vtc_shares_where_fcfs_lets_the_first_client_have_all() -> None:
    jobs = _backlogs(lambda: 6, [30, 30])
    gaps = {}
    for policy in ("vtc.VirtualTokenCounter", "fcfs.FCFS"):
        widest, num_steps = _service_gaps(Bench(jobs, policy, max_num_seqs=2), jobs)
        assert num_steps > 50
        gaps[policy] = widest
    # One request's service apart at most, against all of a client's 30.
    one = _PROMPT_WEIGHT * 6 + _OUTPUT_WEIGHT * 6
    assert gaps["vtc.VirtualTokenCounter"] <= one and gaps["fcfs.FCFS"] > 25 * one


def test_a_client_that_was_away_comes_back_with_no_credit() -> None:
    alone = [Job(num_output_tokens=4, client_id=0) for _ in range(40)]
    back = [Job(at_s=60.0, num_output_tokens=4, client_id=1) for _ in range(30)]
    jobs = alone + back
    bench = Bench(jobs, "vtc.VirtualTokenCounter", max_num_seqs=1)
    policy = bench.engine.scheduler.policy
    assert isinstance(policy, VirtualTokenCounter)
    while bench.clock.now_s() < 61:
        bench.step()
    # Lifted to the counter of the one that waits, give or take the request that runs.
    assert abs(policy.counter(1) - policy.counter(0)) <= 1 + 2 * 4
    ends = [request.client_id for request in bench.drain() if request.finish_s > 64]
    both = ends[:20]
    assert abs(both.count(0) - both.count(1)) <= 1


def test_vtc_charges_prompts_once_and_every_output_token() -> None:
    """Also of requests that were preempted, and of those that end with their first token."""
    jobs = [Job(num_prompt_tokens=3, num_output_tokens=1 + 4 * (i % 3), client_id=0) for i in range(9)]
    bench = Bench(jobs, "vtc.VirtualTokenCounter", max_num_seqs=4, num_blocks=4)
    bench.drain()
    assert bench.engine.scheduler.num_preemptions > 0
    assert bench.engine.scheduler.policy.counter(0) == sum(
        _PROMPT_WEIGHT * job.num_prompt_tokens + _OUTPUT_WEIGHT * job.num_output_tokens for job in jobs
    )


def test_a_request_given_up_while_it_waited_is_no_service_and_waits_no_more() -> None:
    bench = Bench([Job(num_output_tokens=5, client_id=i) for i in range(2)], "vtc.VirtualTokenCounter", max_num_seqs=1)
    bench.step()
    policy = bench.engine.scheduler.policy
    assert policy.counter(0) == 1 + 2 and policy.counter(1) == 0
    bench.engine.abort(1)
    bench.drain()
    assert policy.counter(1) == 0
    assert not policy._unserved and not any(policy._num_waiting.values())


# Feedback queues


@pytest.mark.parametrize(("num_prompt_tokens", "level"), [(1, 0), (4, 0), (5, 1), (12, 1), (13, 2), (60, 2)])
def test_a_request_joins_the_first_queue_that_covers_its_prompt(num_prompt_tokens: int, level: int) -> None:
    """Quanta of 2, 4 and 8; a prompt token costs a quarter, the first token one."""
    engine = Bench([], "mlfq.MultiLevelFeedback").engine
    (request_id,) = engine.add_request([0] * num_prompt_tokens, SamplingParams(max_tokens=2))
    assert engine.scheduler.policy.level(engine.request(request_id), 0.0) == level


def test_a_request_falls_from_queue_to_queue_by_what_it_has_had() -> None:
    kwargs = {"num_levels": 3, "quantum_tokens": 2.0, "prompt_token_cost": 0.0}
    bench = Bench([Job(num_output_tokens=20)], "mlfq.MultiLevelFeedback", kwargs)
    levels = []
    while True:
        bench.step()
        if not bench.engine.scheduler.running:
            break
        (request,) = bench.engine.scheduler.running
        levels.append(bench.engine.scheduler.policy.level(request, bench.clock.now_s()))
    # After each token: two in queue 0, four in queue 1, and in the last for good.
    assert levels == [0, 1, 1, 1, 1, *[2] * 14]


def test_whoever_has_had_little_goes_before_whoever_has_had_much() -> None:
    """No length is known, and yet the short do not wait for the long one that came first."""
    jobs = [Job(num_output_tokens=30), *(Job(at_s=10.0 + i, num_output_tokens=2) for i in range(5))]
    kwargs = {"num_levels": 3, "quantum_tokens": 2.0, "starve_s": 1000.0}
    bench = Bench(jobs, "mlfq.MultiLevelFeedback", kwargs, max_num_seqs=1)
    assert [request.request_id for request in bench.drain()] == [1, 2, 3, 4, 5, 0]


def test_a_starving_request_comes_back_to_the_first_queue() -> None:
    num_short = 60
    jobs = [Job(num_output_tokens=12), *(Job(at_s=8.0 + 2 * i, num_output_tokens=2) for i in range(num_short))]
    ends = {}
    for starve_s in (10.0, 1e6):
        kwargs = {"num_levels": 3, "quantum_tokens": 2.0, "starve_s": starve_s}
        finished = Bench(jobs, "mlfq.MultiLevelFeedback", kwargs, max_num_seqs=1).drain()
        ends[starve_s] = next(request.finish_s for request in finished if request.request_id == 0)
    # Four tokens are left at 8 s; each 10 s of waiting buy one quantum of two.
    assert ends[10.0] < 8 + 2 * (10 + 2) + 2 < 2 * num_short < ends[1e6]


def test_accounts_forget_requests_that_ended() -> None:
    for policy, names in (("mlfq.MultiLevelFeedback", ["_jobs"]), ("vtc.VirtualTokenCounter", ["_unserved"])):
        bench = Bench([Job(num_output_tokens=i % 4 + 1) for i in range(12)], policy, max_num_seqs=3)
        bench.drain()
        assert not any(getattr(bench.engine.scheduler.policy, name) for name in names)
