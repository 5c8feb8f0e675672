"""Policies that are a sort key, against the queues that they are named after.

One seat, prompts of one token and a second a step make the engine a server that does one unit of work at a time, and
preemption costs nothing there: a request that comes back computes all its tokens in the step of its next one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import fmean

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from policies import POLICIES, PREDICTORS, Bench, Job

from minivllm.sampling_params import SamplingParams
from minivllm.scheduler.base import KeyChanges
from minivllm.scheduler.random_order import RandomOrder
from minivllm.scheduler.srpt import ShortestRemaining

# What is smallest is served: a function of (job, its place in the load, tokens said, now).
Rank = Callable[[Job, int, int, float], tuple[float, ...]]
_few = settings(max_examples=8, deadline=None, derandomize=True)


def _server(jobs: list[Job], rank: Rank, preemptive: bool) -> list[tuple[int, float]]:
    """(job, second of its end) by the definition, one unit a second."""
    said, ended, current, now_s = [0] * len(jobs), [], None, 0.0
    while len(ended) < len(jobs):
        present = [i for i, job in enumerate(jobs) if job.at_s <= now_s and said[i] < job.num_output_tokens]
        if present:
            if current is None or preemptive:
                current = min(present, key=lambda i: (*rank(jobs[i], i, said[i], now_s), jobs[i].at_s, i))
            said[current] += 1
            if said[current] == jobs[current].num_output_tokens:
                ended.append((current, now_s))
                current = None
        now_s += 1
    return ended


QUEUES: dict[str, tuple[bool, Rank]] = {
    "fcfs.FCFS": (False, lambda job, i, said, now_s: ()),
    "reverse.Reverse": (False, lambda job, i, said, now_s: (-job.at_s, -i)),
    "sjf.ShortestJobFirst": (False, lambda job, i, said, now_s: (job.num_output_tokens,)),
    "priority.Priority": (True, lambda job, i, said, now_s: (job.priority,)),
    "srpt.ShortestRemaining": (True, lambda job, i, said, now_s: (job.num_output_tokens - said,)),
    # By the clock, though the policy's key has none.
    "aging.Aging": (
        True,
        lambda job, i, said, now_s: (job.num_output_tokens - said - 0.5 * (now_s - job.at_s),),
    ),
    "edf.EarliestDeadline": (True, lambda job, i, said, now_s: (job.at_s + 4.0 + 0.5 * (said - said % 3),)),
}


@st.composite
def _jobs(draw, longest: int = 12):
    times = sorted(draw(st.lists(st.integers(0, 30), min_size=1, max_size=8)))
    return [
        Job(at_s=float(t), num_output_tokens=draw(st.integers(1, longest)), priority=draw(st.integers(0, 2)))
        for t in times
    ]


@pytest.mark.parametrize("policy", QUEUES)
def test_one_seat_is_the_queue_of_the_policys_name(policy: str) -> None:
    preemptive, rank = QUEUES[policy]
    kwargs = {} if policy.startswith("srpt") else POLICIES[policy]

    @_few
    @given(_jobs())
    def check(jobs: list[Job]) -> None:
        bench = Bench(jobs, policy, kwargs, max_num_seqs=1)
        assert [(r.request_id, r.finish_s) for r in bench.drain()] == _server(jobs, rank, preemptive)

    check()


@_few
@given(_jobs())
def test_srpt_has_the_least_mean_latency_of_all_queues(jobs: list[Job]) -> None:
    def mean_latency_s(policy: str) -> float:
        kwargs = {} if policy.startswith("srpt") else POLICIES[policy]
        finished = Bench(jobs, policy, kwargs, max_num_seqs=1).drain()
        return fmean(request.finish_s - request.arrival_s for request in finished)

    best = mean_latency_s("srpt.ShortestRemaining")
    assert all(best <= mean_latency_s(policy) for policy in QUEUES if policy != "srpt.ShortestRemaining")


def _flood(num_short: int) -> list[Job]:
    """A long request, and short ones that keep the server busy on their own."""
    return [Job(num_output_tokens=20), *(Job(at_s=2.0 * i, num_output_tokens=2) for i in range(num_short))]


def test_srpt_starves_the_long_and_aging_ends_that() -> None:
    num_short = 100
    starved = {r.request_id: r for r in Bench(_flood(num_short), "srpt.ShortestRemaining", {}, max_num_seqs=1).drain()}
    assert starved[0].finish_s >= 2 * num_short
    aged = Bench(_flood(num_short), "aging.Aging", {"tokens_per_s": 0.5}, max_num_seqs=1).drain()
    (long,) = [r for r in aged if r.request_id == 0]
    # Whoever comes (20 - 2) / 0.5 = 36 s later ranks behind it; those before are 18 with 36 s of work, and its own 20.
    assert long.finish_s <= 36 + 36 + 20 < 2 * num_short


def test_a_request_near_its_end_is_not_put_out_where_preemption_is_limited() -> None:
    jobs = [Job(num_output_tokens=10), Job(at_s=8.0, num_output_tokens=1), Job(at_s=9.0, num_output_tokens=1)]

    def ends(fraction: float | None) -> list[int]:
        bench = Bench(jobs, "srpt.ShortestRemaining", {"preemptible_fraction": fraction}, max_num_seqs=1)
        return [request.request_id for request in bench.drain()]

    assert ends(None) == [1, 2, 0]
    # After eight of ten tokens it stays.
    assert ends(0.8) == [0, 1, 2]


def test_equally_urgent_requests_do_not_put_each_other_out_at_every_token() -> None:
    """Two readers of a token in two seconds, and a server that makes one in one: both are served in time, by turns."""
    jobs = [Job(num_output_tokens=20), Job(num_output_tokens=20)]

    def serve(tokens_per_turn: int) -> tuple[int, float]:
        kwargs = {"ttft_s": 10.0, "tpot_s": 2.0, "tokens_per_turn": tokens_per_turn}
        bench = Bench(jobs, "edf.EarliestDeadline", kwargs, max_num_seqs=1)
        # How late a token came, by its deadline; it is there when its step is over.
        late_s = max(made_s + 1 - (10.0 + 2.0 * i) for r in bench.drain() for i, made_s in enumerate(r.token_times_s))
        return bench.engine.scheduler.num_preemptions, late_s

    # A turn each, until both are done; the last turn ends with its request.
    assert serve(1) == (38, pytest.approx(-8.0)) and serve(5)[0] == 6 and serve(5)[1] <= 0


def test_random_order_depends_on_its_seed_and_on_nothing_else() -> None:
    jobs = [Job(num_output_tokens=1 + i % 3) for i in range(20)]

    def ends(seed: int) -> list[int]:
        finished = Bench(jobs, "random_order.RandomOrder", {"seed": seed}, max_num_seqs=1).drain()
        return [request.request_id for request in finished]

    assert ends(1) == ends(1)
    assert len({tuple(ends(seed)) for seed in range(5)}) == 5
    # The first place is as often anybody's: 200 draws among 4, expected 50 each, four standard deviations of 6.1.
    firsts = [min(range(4), key=lambda i, s=seed: RandomOrder(s).key(_Id(i), 0.0)) for seed in range(200)]
    assert all(abs(firsts.count(i) - 50) < 25 for i in range(4))


class _Id:
    def __init__(self, request_id: int) -> None:
        self.request_id = request_id


@pytest.mark.parametrize("predictor", ["oracle.Oracle", "refining_oracle.RefiningOracle"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_key_changes_when_it_says(policy: str, predictor: str) -> None:
    dice = random.Random(4)
    jobs = [
        Job(at_s=float(i), num_output_tokens=dice.randint(1, 9), num_prompt_tokens=dice.randint(1, 9), priority=i % 3)
        for i in range(20)
    ]
    bench = Bench(jobs, policy, max_num_seqs=2, predictor=predictor, predictor_kwargs=PREDICTORS[predictor])
    scheduler, made = bench.engine.scheduler, bench.engine.scheduler.policy
    if made.key_changes is KeyChanges.EVERY_STEP:
        return
    # After the step before: keys of all, and who waited.
    keys: dict[int, tuple[float, ...]] = {}
    waited: set[int] = set()
    num_waits = 0
    while bench.is_busy:
        bench.step()
        waiting = {request.request_id for request in scheduler.waiting}
        for request in [*scheduler.running, *scheduler.waiting]:
            key = made.key(request, bench.clock.now_s())
            before = keys.get(request.request_id, key)
            if request.request_id in waiting & waited or made.key_changes is KeyChanges.NEVER:
                num_waits += 1
                assert key == before
            keys[request.request_id] = key
        waited = waiting
    assert num_waits > len(jobs)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_repeats_itself(policy: str) -> None:
    jobs = [
        Job(at_s=float(i // 2), num_prompt_tokens=1 + i % 5, num_output_tokens=1 + 7 * i % 11, client_id=i % 3)
        for i in range(24)
    ]
    benches = [Bench(jobs, policy, max_num_seqs=3, num_blocks=12, max_num_batched_tokens=7) for _ in range(2)]
    for bench in benches:
        assert len(bench.drain()) == len(jobs)
    assert benches[0].emitted == benches[1].emitted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShortestRemaining(preemptible_fraction=0.0), "scheduler.preemptible_fraction=0.0: must be null or in"),
        (lambda: _made("aging.Aging", tokens_per_s=-1), "scheduler.tokens_per_s=-1: must be 0 or more"),
        (lambda: _made("edf.EarliestDeadline", ttft_s=None), "scheduler.ttft_s=None: must be above 0: set it"),
        (lambda: _made("mlfq.MultiLevelFeedback", num_levels=0), "scheduler.num_levels=0: must be 1 or more"),
        (lambda: _made("vtc.VirtualTokenCounter", output_token_weight=0), "scheduler.output_token_weight=0: must be"),
        (lambda: _made("past_future.PastFuture", reserved_fraction=1), "scheduler.reserved_fraction=1: must be in"),
        (lambda: _made("sarathi.Sarathi", step_tokens=0), "scheduler.step_tokens=0: must be null or 1 or more"),
        (lambda: _made("dynamic_batching.DynamicBatching", min_requests=0), "scheduler.min_requests=0: must be 1"),
    ],
)
def test_a_wrong_argument_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def _made(policy: str, **kwargs) -> Bench:
    return Bench([], policy, kwargs)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sibling_that_ranks_before_the_request_whose_prompt_it_shares_holds_nobody_up(policy: str) -> None:
    """One seat, and it is not the first of the siblings that is predicted to be the shortest."""
    for seed in range(6):
        options = {"predictor": "noisy_oracle.NoisyOracle", "predictor_kwargs": {"sigma": 1.0, "seed": seed}}
        bench = Bench([], policy, max_num_seqs=1, **options)
        bench.engine.add_request([0, 1, 0], SamplingParams(max_tokens=9, n=3, ignore_eos=True))
        assert len(bench.drain()) == 3
