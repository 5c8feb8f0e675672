"""What is skipped because it cannot matter does not: the same plans as from ranking everyone in every step."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from symbolic import make_engine

from minivllm.engine import Engine
from minivllm.request import RequestView
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler.base import KeyChanges, PolicyError, SchedulingPolicy
from minivllm.scheduler.scheduler import Scheduler


class _Arrival(SchedulingPolicy):
    pass


class _Shortest(SchedulingPolicy):
    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (request.max_tokens, request.request_id)


class _LeastLeft(SchedulingPolicy):
    preemptive = True

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (request.max_tokens - request.num_output_tokens, request.request_id)


class _RanksEveryone(Scheduler):
    """Takes no short cut."""

    def _serve_everyone(self, builder) -> bool:
        return False


def _kept(policy: type[SchedulingPolicy], changes: KeyChanges) -> SchedulingPolicy:
    made = type(policy.__name__, (policy,), {"key_changes": changes})()
    assert isinstance(made, SchedulingPolicy)
    return made


_CASES = [(_Arrival, KeyChanges.NEVER), (_Shortest, KeyChanges.NEVER), (_LeastLeft, KeyChanges.WHEN_SERVED)]


@pytest.mark.parametrize(("policy", "changes"), _CASES, ids=lambda value: getattr(value, "__name__", value))
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_short_cuts_give_everyone_the_same(policy: type[SchedulingPolicy], changes: KeyChanges, data) -> None:
    num_blocks, max_num_seqs = data.draw(st.integers(12, 24)), data.draw(st.integers(1, 5))
    budget, chunked = data.draw(st.integers(1, 24)), data.draw(st.booleans())
    requests = data.draw(
        st.lists(st.tuples(st.integers(1, 14), st.integers(1, 10), st.integers(1, 3), st.integers(0, 4)), max_size=12)
    )

    def engine_with(scheduler: type[Scheduler], changes: KeyChanges) -> Engine:
        engine = make_engine(
            num_blocks=num_blocks,
            block_size=2,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            chunked_prefill=chunked,
            max_model_len=32,
            # Which of two equal blocks is the published one depends on the order of the requests in a plan.
            prefix_caching=False,
        )
        engine.scheduler = scheduler(engine.config.scheduler, _kept(policy, changes), engine.scheduler.tables)
        return engine

    quick, slow = engine_with(Scheduler, changes), engine_with(_RanksEveryone, KeyChanges.EVERY_STEP)
    waiting = list(requests)
    while waiting or quick.has_unfinished:
        while waiting:
            length, max_tokens, n, steps = waiting.pop(0)
            for engine in (quick, slow):
                prompt = [i % 2 for i in range(length)]
                engine.add_request(prompt, SamplingParams(max_tokens=max_tokens, n=n, ignore_eos=True, seed=0))
            if steps:
                break
        for _ in range(3):
            if quick.has_unfinished:
                reports = [engine.step() for engine in (quick, slow)]
                got = [(sorted(r.emitted), r.num_prefill_tokens, r.num_running, r.num_preemptions) for r in reports]
                assert got[0] == got[1]
                quick.check()
    assert not slow.has_unfinished


class _Says(SchedulingPolicy):
    """Every key is what it was made with."""

    def __init__(self, key: object) -> None:
        self._key = key

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return self._key if request.request_id % 2 else (0.0,)  # type: ignore[return-value]


@pytest.mark.parametrize("changes", [KeyChanges.EVERY_STEP, KeyChanges.NEVER], ids=lambda changes: changes.value)
@pytest.mark.parametrize("key", [(float("nan"),), (0.0, float("nan")), 3.0, ("soon",), None], ids=repr)
def test_a_key_without_an_order_is_named_and_nothing_leaks(key: object, changes: KeyChanges) -> None:
    engine = make_engine(num_blocks=32, block_size=2, max_num_batched_tokens=6)
    policy = _Says(key)
    policy.key_changes = changes
    engine.scheduler = Scheduler(engine.config.scheduler, policy, engine.scheduler.tables)
    with pytest.raises(PolicyError, match="scheduler=_Says: breaks the rule of keys: "):
        for _ in range(4):
            engine.add_request([0, 1, 1, 0, 1], SamplingParams(max_tokens=3, ignore_eos=True, seed=0))
        engine.step()
    for request in list(engine.scheduler.waiting) + engine.scheduler.running:
        engine.abort(request.request_id)
    assert not engine.has_unfinished
    engine.check()


def test_infinite_keys_are_numbers() -> None:
    engine = make_engine(num_blocks=32, block_size=2)
    engine.scheduler = Scheduler(engine.config.scheduler, _Says((float("inf"), -float("inf"))), engine.scheduler.tables)
    for _ in range(4):
        engine.add_request([0, 1], SamplingParams(max_tokens=3, ignore_eos=True, seed=0))
    while engine.has_unfinished:
        engine.step()
    assert len(engine.take_finished()) == 4


class _Patient(SchedulingPolicy):
    """Nothing before an instant."""

    def __init__(self, until_s: float) -> None:
        self._until_s = until_s

    def wait_until_s(self, state, now_s: float) -> float | None:
        return self._until_s if not now_s >= self._until_s else None


def _with_patience(until_s: float) -> Engine:
    engine = make_engine(num_blocks=32, block_size=2)
    engine.scheduler = Scheduler(engine.config.scheduler, _Patient(until_s), engine.scheduler.tables)
    engine.add_request([0, 1], SamplingParams(max_tokens=3, ignore_eos=True, seed=0))
    return engine


def test_a_policy_may_wait_and_says_until_when() -> None:
    until_s = _with_patience(0.0).clock.now_s() + 0.05
    engine = _with_patience(until_s)
    report = engine.step()
    assert report.idle_until_s == until_s and report.num_prefill_tokens == 0 and not report.emitted
    engine.clock.sleep_until(until_s)
    assert engine.step().num_prefill_tokens == 2


def test_a_wait_without_an_end_is_named() -> None:
    for until_s in (float("inf"), float("nan")):
        with pytest.raises(PolicyError, match="_Patient: breaks the rule of waits that end"):
            _with_patience(until_s).step()
