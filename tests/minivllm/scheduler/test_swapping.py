"""Victims that wait in host memory: nothing is computed again, nothing is read before it is there, nothing leaks."""

from __future__ import annotations

from typing import TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from symbolic import continuation, make_engine

from minivllm.clock import VirtualClock
from minivllm.config import CacheConfig, EngineConfig, ModelConfig, PreemptionConfig
from minivllm.engine import Engine
from minivllm.request import Request
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler.base import SchedulingPolicy
from minivllm.scheduler.preemptions.base import PreemptionMode
from minivllm.scheduler.scheduler import Scheduler

SWAP = PreemptionConfig.named("swap", num_swap_blocks=64)


def _params(**changes) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 6, "ignore_eos": True, "seed": 0, **changes})


_Policy = TypeVar("_Policy", bound=SchedulingPolicy)


def _use_policy(engine: Engine, policy: _Policy) -> _Policy:
    old = engine.scheduler
    engine.scheduler = Scheduler(
        engine.config.scheduler, policy, old.tables, victims=old.victims, swapping=old.swapping
    )
    return policy


def _drain(engine: Engine) -> list[Request]:
    done: list[Request] = []
    while engine.has_unfinished:
        engine.step()
        engine.check()
        done += engine.take_finished()
    return sorted(done, key=lambda request: request.request_id)


def _press(preemption: PreemptionConfig | None, **options) -> tuple[Engine, list[Request]]:
    """Four requests of 12 tokens in a pool for fewer than two of them."""
    options = {"num_blocks": 5, "block_size": 4, "prefix_caching": False, **options}
    engine = make_engine(preemption=preemption, **options)
    for i in range(4):
        engine.add_request([0, 1, i % 2], _params(max_tokens=10))
    return engine, _drain(engine)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_swapped_request_computes_nothing_again(overlap: bool) -> None:
    engine, done = _press(SWAP, overlap=overlap)
    assert engine.scheduler.num_preemptions > 0 and engine.scheduler.swapping.num_fallbacks == 0
    assert engine.scheduler.num_recomputed_tokens == sum(r.num_recomputed_tokens for r in done) == 0
    # The last token is sampled, never computed.
    assert engine.runner.num_computed_tokens == 4 * 12
    assert engine.runner.num_swaps_in == engine.runner.num_swaps_out > 0
    for i, request in enumerate(done):
        assert request.output_token_ids == continuation([0, 1, i % 2], request.sampling_seed, 13, frozenset())
    recomputing, _ = _press(None, overlap=overlap)
    assert recomputing.runner.num_computed_tokens > 48 and recomputing.runner.num_swaps_out == 0


@settings(max_examples=25, deadline=None)
@given(num_swap_blocks=st.integers(1, 8), overlap=st.booleans(), prefix_caching=st.booleans())
def test_where_host_memory_is_full_victims_are_computed_again(num_swap_blocks, overlap, prefix_caching) -> None:
    swap = PreemptionConfig.named("swap", num_swap_blocks=num_swap_blocks)
    engine, done = _press(swap, overlap=overlap, prefix_caching=prefix_caching)
    scheduler = engine.scheduler
    assert [r.num_output_tokens for r in done] == [10] * 4
    again = engine.runner.num_computed_tokens - 48 + sum(r.num_cached_tokens for r in done)
    assert scheduler.num_recomputed_tokens == again
    assert (again > 0) <= (scheduler.swapping.num_fallbacks > 0) <= (num_swap_blocks < 8)


def test_one_slot_is_too_few_for_anyone_and_says_so() -> None:
    engine, _ = _press(PreemptionConfig.named("swap", num_swap_blocks=1), block_size=2, num_blocks=10)
    assert engine.scheduler.swapping.num_fallbacks > 0 and engine.scheduler.num_recomputed_tokens > 0


def test_reports_count_the_blocks_of_both_ways() -> None:
    engine = make_engine(num_blocks=5, block_size=4, prefix_caching=False, preemption=SWAP)
    for _ in range(4):
        engine.add_request([0, 1, 0], _params(max_tokens=10))
    swapped = 0
    while engine.has_unfinished:
        report = engine.step()
        assert report.num_recomputed_tokens == 0
        swapped += report.num_swapped_blocks
    assert swapped == engine.runner.num_swaps_out + engine.runner.num_swaps_in > 0


def test_blocks_that_are_cached_still_are_taken_over_instead() -> None:
    """A victim's full blocks stay published: where nobody took them meanwhile, only the others come back."""
    engine = make_engine(num_blocks=12, block_size=2, max_num_seqs=1, preemption=SWAP)
    _use_policy(engine, _Shortest())
    (long,) = engine.add_request([0, 1, 0, 1, 1], _params(max_tokens=9))
    engine.step()
    engine.step()
    (short,) = engine.add_request([1, 1], _params(max_tokens=1))
    done = _drain(engine)
    # 6 computed positions; the block of 4 and 5 was full, and so all of it was found.
    assert [r.request_id for r in done] == [long, short]
    assert engine.runner.num_swaps_out == 3 and engine.runner.num_swaps_in == 0
    assert engine.scheduler.num_recomputed_tokens == 0


class _Shortest(SchedulingPolicy):
    preemptive = True

    def key(self, request, now_s):
        return (request.predicted_output_tokens - request.num_output_tokens, request.arrival_s)


class _Scripted(SchedulingPolicy):
    """Serves in the order that it is told."""

    preemptive = True

    def __init__(self) -> None:
        self.ranks: list[int] = []

    def key(self, request, now_s):
        at = self.ranks.index(request.request_id) if request.request_id in self.ranks else 99
        return (at, request.request_id)


def test_a_slot_that_is_read_in_a_step_is_written_in_none_before_it_is_over() -> None:
    """One comes back and another leaves in the same step: their slots differ, though the first ones are given back."""
    engine = make_engine(
        num_blocks=4,
        block_size=2,
        max_num_seqs=1,
        prefix_caching=False,
        preemption=PreemptionConfig.named("swap", num_swap_blocks=4),
    )
    policy = _use_policy(engine, _Scripted())
    for _ in range(2):
        engine.add_request([0, 1, 0], _params(max_tokens=5))
    plans = []
    launch = engine.runner.launch
    engine.runner.launch = lambda plan: (plans.append(plan), launch(plan))[1]
    for ranks in ([0, 1], [1, 0], [0, 1], [1, 0]):
        policy.ranks = ranks
        engine.step()
        engine.check()
    both = [plan for plan in plans if plan.swaps_out and plan.swaps_in]
    assert len(both) == 2
    for plan in both:
        assert not {s.slot for s in plan.swaps_out} & {s.slot for s in plan.swaps_in}
    _drain(engine)


def test_siblings_wait_until_the_prompt_that_they_share_is_back() -> None:
    """The first of three is swapped out before the others are in: they do not copy a block that is on its way."""
    engine = make_engine(num_blocks=16, block_size=4, max_num_seqs=1, prefix_caching=False, preemption=SWAP)
    policy = _use_policy(engine, _Scripted())
    ids = engine.add_request([0, 1, 1, 0, 1, 0], _params(n=3, max_tokens=6))
    policy.ranks = [*ids]
    engine.step()
    (other,) = engine.add_request([1, 1], _params(max_tokens=6))
    policy.ranks = [other, *ids]
    engine.step()
    assert engine.request(ids[0]).num_preemptions == 1 and engine.request(ids[0]).num_computed_tokens == 6
    # Siblings first, and seats for all.
    policy.ranks = [*reversed(ids), other]
    engine.scheduler.config = EngineConfig.from_flat(path="x", max_num_seqs=4).scheduler
    engine.step()
    assert [r.request_id for r in engine.scheduler.running] == [other, ids[0]]
    policy.ranks = [*ids, other]
    engine.step()
    assert {*ids} <= {r.request_id for r in engine.scheduler.running}
    outputs = {r.request_id: r for r in _drain(engine)}
    for request_id in ids:
        seed = outputs[request_id].sampling_seed
        assert outputs[request_id].output_token_ids == continuation([0, 1, 1, 0, 1, 0], seed, 12, frozenset())


class _Turns(SchedulingPolicy):
    """Whoever has had fewer pairs of tokens goes first, the newest of them, and puts others out."""

    preemptive = True

    def key(self, request, now_s):
        return (request.num_output_tokens // 2, -request.request_id)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    num_swap_blocks=st.sampled_from([None, 6, 99]),
    max_num_seqs=st.integers(1, 3),
    n=st.integers(1, 3),
)
@example(lengths=[3, 2, 1], num_swap_blocks=99, max_num_seqs=2, n=1)
@example(lengths=[1], num_swap_blocks=None, max_num_seqs=1, n=2)
def test_whoever_was_put_out_does_not_come_back_in_the_same_step(lengths, num_swap_blocks, max_num_seqs, n) -> None:
    """Nor does anyone starve where a policy ranks the first of siblings, who computes their prompt, behind them."""
    engine = make_engine(
        num_blocks=24,
        block_size=1,
        prefix_caching=False,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=2,
        chunked_prefill=False,
        victim="newest.Newest",
        preemption=PreemptionConfig.named("swap", num_swap_blocks=num_swap_blocks) if num_swap_blocks else None,
    )
    _use_policy(engine, _Turns())
    launch, plans = engine.runner.launch, []
    engine.runner.launch = lambda plan: (plans.append(plan), launch(plan))[1]
    for length in lengths:
        engine.add_request([0] * length, _params(max_tokens=5, n=n))
    assert len(_drain(engine)) == n * len(lengths)
    for plan in plans:
        assert not {*plan.released} & {new.request_id for new in plan.new_rows}


def test_one_who_ends_in_host_memory_leaves_nothing_there() -> None:
    engine = make_engine(num_blocks=5, block_size=4, prefix_caching=False, preemption=SWAP)
    ids = [engine.add_request([0, 1, 0], _params(max_tokens=10))[0] for _ in range(4)]
    while engine.scheduler.num_preemptions == 0:
        engine.step()
    swapped = next(i for i in ids if engine.request(i).num_preemptions)
    assert engine.request(swapped).num_computed_tokens > 0
    engine.abort(swapped)
    engine.check()
    (gone,) = engine.take_finished()
    assert len(gone.preempted_at_s) == 1 and gone.resumed_at_s == []
    _drain(engine)


def test_the_timeline_holds_the_instants_of_leaving_and_of_coming_back() -> None:
    clock = VirtualClock()
    engine = make_engine(num_blocks=64, block_size=2, max_num_seqs=1, preemption=SWAP, clock=clock)
    policy = _use_policy(engine, _Scripted())
    for _ in range(2):
        engine.add_request([0, 1, 0], _params(max_tokens=4))
    for ranks in ([0, 1], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0]):
        policy.ranks = ranks
        engine.step()
        clock.advance(1.0)
    first, second = engine.request(0), engine.request(1)
    assert (first.preempted_at_s, first.resumed_at_s) == ([1.0, 5.0], [3.0])
    assert (second.preempted_at_s, second.resumed_at_s) == ([3.0], [5.0])
    while engine.has_unfinished:
        engine.step()
        clock.advance(1.0)


class _LargeOnes(PreemptionMode):
    """Swaps what is worth it."""

    def swaps(self, request, num_blocks: int) -> bool:
        return num_blocks > 2


def test_a_mode_of_ones_own_decides_victim_by_victim() -> None:
    engine = make_engine(num_blocks=16, block_size=2, max_num_seqs=1, prefix_caching=False, preemption=SWAP)
    engine.scheduler.swapping._mode = _LargeOnes()
    policy = _use_policy(engine, _Scripted())
    for length in (3, 5):
        engine.add_request([0] * length, _params(max_tokens=4))
    for ranks in ([0, 1], [1, 0], [0, 1], [0, 1]):
        policy.ranks = ranks
        engine.step()
        engine.check()
    _drain(engine)
    assert engine.scheduler.num_recomputed_tokens == 3 and engine.runner.num_swaps_out == 3


def test_tokens_that_are_lost_twice_are_counted_twice() -> None:
    """A victim that is preempted while it computes again has not come back to where it was."""
    engine = make_engine(num_blocks=32, block_size=2, max_num_seqs=1, max_num_batched_tokens=4, prefix_caching=False)
    policy = _use_policy(engine, _Scripted())
    for length in (8, 2):
        engine.add_request([0] * length, _params(max_tokens=4))
    for ranks in ([0, 1], [0, 1], [1, 0], [0, 1], [1, 0]):
        policy.ranks = ranks
        engine.step()
    policy.ranks = [0, 1]
    _drain(engine)
    again = engine.runner.num_computed_tokens - (8 + 3) - (2 + 3)
    assert engine.scheduler.num_recomputed_tokens == again > 8


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"preemption": "swap"}, r"preemption\.num_swap_blocks=None: must be 1 or more where preemption\.swap_bytes"),
        ({"preemption": "nope"}, None),
        ({"preemption": 3}, r"preemption=3: must be the name of a mode or a PreemptionConfig"),
        ({"preemption": SWAP, "reuse_kv": False, "prefix_caching": False}, r"cache\.reuse_kv=False: must be true with"),
    ],
)
def test_what_cannot_be_swapped_is_one_line(options, told) -> None:
    if told is None:
        told = r"preemption\.num_swap_blocks=None"
    with pytest.raises(ValueError, match=rf"^{told}[^\n]*$"):
        EngineConfig.from_flat(path="x", **options)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_swap_blocks": 0}, r"preemption\.num_swap_blocks=0: must be null or 1 or more"),
        ({"swap_bytes": 1.5}, r"preemption\.swap_bytes=1\.5: must be null or 1 or more"),
    ],
)
def test_sizes_of_host_memory_are_counts(fields, told) -> None:
    with pytest.raises(ValueError, match=rf"^{told}$"):
        PreemptionConfig.named("swap", **fields)
    with pytest.raises(ValueError, match=r"null with preemption=recompute, which keeps nothing$"):
        PreemptionConfig(**{name: 4 for name in fields})


def test_an_unknown_mode_is_one_line() -> None:
    config = EngineConfig(
        model=ModelConfig(path="x"),
        cache=CacheConfig(num_blocks=1),
        preemption=PreemptionConfig.named("nope", num_swap_blocks=1),
    )
    with pytest.raises(ValueError, match=r"^preemption\._target_='minivllm\.scheduler\.preemptions\.nope\.Nope'"):
        Engine(config, make_engine(num_blocks=1, block_size=1).runner)
