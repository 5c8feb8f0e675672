"""Policies that decide who is let in, when, and with how many tokens."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from policies import Bench, Job

from minivllm.sampling_params import SamplingParams
from minivllm.scheduler.past_future import peak_tokens

_few = settings(max_examples=40, deadline=None, derandomize=True)


# Past-Future


@_few
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=8))
def test_the_future_peak_is_that_of_running_the_batch_to_its_end(requests: list[tuple[int, int]]) -> None:
    held = [
        sum(context + step for context, left in requests if step <= left)
        for step in range(max((left for _, left in requests), default=0) + 1)
    ]
    assert peak_tokens(requests) == (max(held) if requests else 0)


def test_past_future_admits_without_preempting_where_fcfs_preempts() -> None:
    jobs = [Job(num_prompt_tokens=2, num_output_tokens=20) for _ in range(30)]

    def serve(policy: str, kwargs: dict) -> tuple[int, int]:
        bench, most = Bench(jobs, policy, kwargs, num_blocks=16), 0
        while bench.is_busy:
            bench.step()
            most = max(most, len(bench.engine.scheduler.running))
        return bench.engine.scheduler.num_preemptions, most

    preemptions, most = serve("past_future.PastFuture", {"prior_tokens": 20, "reserved_fraction": 0.0})
    # Two whole requests of six blocks, and what others hold before they grow.
    assert preemptions == 0 and most >= 2
    preemptions, _ = serve("fcfs.FCFS", {})
    assert preemptions > 0


def test_past_future_learns_lengths_from_those_that_ended() -> None:
    """A prior far too long lets in one at a time at first; what ended tells better."""
    jobs = [Job(num_output_tokens=2) for _ in range(40)]
    bench = Bench(jobs, "past_future.PastFuture", {"prior_tokens": 1000, "window": 4}, num_blocks=40)
    widths = []
    while bench.is_busy:
        bench.step()
        widths.append(len(bench.emitted[-1]))
    assert widths[0] == 1 and max(widths[8:]) >= 6


def test_past_future_forgets_what_is_older_than_its_window() -> None:
    bench = Bench([Job(num_output_tokens=1 + i % 9) for i in range(50)], "past_future.PastFuture")
    finished = bench.drain()
    policy = bench.engine.scheduler.policy
    newest = [request.num_output_tokens for request in finished[-20:]]
    assert list(policy._history) == newest and policy._sorted == sorted(newest)


# Stall-free chunked prefill


def _mixed(num: int) -> list[Job]:
    """Long prompts come while others decode."""
    return [Job(at_s=float(3 * i), num_prompt_tokens=41 if i % 2 else 3, num_output_tokens=9) for i in range(num)]


@pytest.mark.parametrize("step_tokens", [5, 8, None])
def test_sarathi_never_stalls_a_decode_and_keeps_to_its_budget(step_tokens: int | None) -> None:
    bench = Bench(_mixed(12), "sarathi.Sarathi", {"step_tokens": step_tokens}, num_blocks=99, max_num_batched_tokens=16)
    engine, num_long = bench.engine, 0
    while bench.is_busy:
        decoding = {request.request_id for request in engine.scheduler.running if not request.is_prefill}
        bench.step()
        report = bench.reports[-1]
        assert report.num_prefill_tokens + report.num_decode_tokens <= (step_tokens or 16)
        if len(decoding) <= (step_tokens or 16):
            assert decoding <= {request_id for request_id, _ in report.emitted}
        num_long += len(decoding) > 0 and report.num_prefill_tokens > 0
    assert num_long > 10


def test_prefill_first_does_stall_them() -> None:
    bench = Bench(_mixed(12), "prefill_first.PrefillFirst", num_blocks=99, max_num_batched_tokens=16)
    stalled = 0
    while bench.is_busy:
        decoding = {request.request_id for request in bench.engine.scheduler.running if not request.is_prefill}
        bench.step()
        stalled += not decoding <= {request_id for request_id, _ in bench.emitted[-1]}
    assert stalled > 10


def test_sarathi_serves_prefills_that_have_begun_before_new_ones() -> None:
    jobs = [Job(num_prompt_tokens=11, num_output_tokens=1) for _ in range(3)]
    bench = Bench(jobs, "sarathi.Sarathi", {"step_tokens": 4})
    finished = bench.drain()
    # 33 tokens in steps of four, without a gap.
    assert [(r.request_id, r.finish_s) for r in finished] == [(0, 2.0), (1, 5.0), (2, 8.0)]


def test_a_budget_beyond_the_engines_is_an_error_that_names_both() -> None:
    bench = Bench([Job(num_output_tokens=1)], "sarathi.Sarathi", {"step_tokens": 9}, max_num_batched_tokens=8)
    with pytest.raises(ValueError, match=r"^scheduler.step_tokens=9: .* scheduler.max_num_batched_tokens=8$"):
        bench.step()


# Dynamic batching


def _starts(bench: Bench) -> dict[int, float]:
    return {request.request_id: request.first_scheduled_s for request in bench.drain()}


def test_a_batch_goes_when_enough_wait() -> None:
    jobs = [Job(at_s=at_s, num_output_tokens=3) for at_s in (0.0, 1.0, 2.0, 4.0, 4.0, 4.0)]
    bench = Bench(jobs, "dynamic_batching.DynamicBatching", {"min_requests": 3, "max_wait_s": 100.0})
    starts = _starts(bench)
    # The third comes at 2 s, and the batch takes three steps; the next one waits for its end.
    assert [starts[i] for i in range(3)] == [2.0, 2.0, 2.0]
    assert [starts[i] for i in range(3, 6)] == [5.0, 5.0, 5.0]


def test_a_batch_goes_when_its_oldest_has_waited_enough() -> None:
    jobs = [Job(at_s=1.0, num_output_tokens=2), Job(at_s=4.0, num_output_tokens=2)]
    bench = Bench(jobs, "dynamic_batching.DynamicBatching", {"min_requests": 3, "max_wait_s": 5.0})
    assert _starts(bench) == {0: 6.0, 1: 6.0}


def test_no_wait_is_static_batching() -> None:
    jobs = [Job(at_s=float(i), num_output_tokens=1 + i % 4) for i in range(15)]
    now = Bench(jobs, "dynamic_batching.DynamicBatching", {"min_requests": 1, "max_wait_s": 0.0}, max_num_seqs=3)
    assert _starts(now) == _starts(Bench(jobs, "static.StaticBatching", max_num_seqs=3))


def test_a_batch_that_fills_all_seats_waits_for_no_more() -> None:
    jobs = [Job(num_output_tokens=2) for _ in range(4)]
    bench = Bench(jobs, "dynamic_batching.DynamicBatching", {"min_requests": 9, "max_wait_s": 50.0}, max_num_seqs=2)
    starts = _starts(bench)
    assert [starts[i] for i in range(4)] == [0.0, 0.0, 2.0, 2.0]


# Longest prefix match


def _tree_load(policy: str) -> Bench:
    """Two families of prompts that come by turns; the pool holds the prefix of one of them beside a request."""
    bench = Bench([], policy, num_blocks=9, max_num_seqs=1, prefix_caching=True)
    for i in range(16):
        family = [i % 2] * 24
        bench.engine.add_request([*family, *[i >> bit & 1 for bit in range(4)]], SamplingParams(max_tokens=2, seed=0))
    return bench


def test_longest_prefix_match_uses_a_prefix_while_it_is_there() -> None:
    hits = {}
    for policy in ("longest_prefix_match.LongestPrefixMatch", "fcfs.FCFS"):
        finished = _tree_load(policy).drain()
        hits[policy] = sum(request.num_cached_tokens for request in finished)
    # All but the first of each family find its six blocks.
    assert hits["longest_prefix_match.LongestPrefixMatch"] >= 14 * 24 > 4 * hits["fcfs.FCFS"]


def test_longest_prefix_match_is_fcfs_where_nothing_is_cached() -> None:
    jobs = [Job(at_s=float(i // 3), num_prompt_tokens=1 + i, num_output_tokens=3) for i in range(12)]
    emitted = []
    for policy in ("longest_prefix_match.LongestPrefixMatch", "fcfs.FCFS"):
        bench = Bench(jobs, policy, max_num_seqs=2)
        bench.drain()
        emitted.append(bench.emitted)
    assert emitted[0] == emitted[1]
