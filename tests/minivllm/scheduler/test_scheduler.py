"""The mechanism and its rules, against a runner that asserts every read."""

from __future__ import annotations

import pytest
from symbolic import continuation, make_engine

from minivllm.config import Component, EngineConfig
from minivllm.engine import Engine
from minivllm.request import FinishReason
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler.base import Allotment, PolicyError, SchedulingPolicy
from minivllm.scheduler.scheduler import Scheduler


def _drain(engine: Engine) -> dict[int, list[int]]:
    outputs = {}
    while engine.has_unfinished:
        engine.step()
        engine.check()
        for request in engine.take_finished():
            outputs[request.request_id] = request.output_token_ids
    return outputs


def _use_policy(engine: Engine, policy: SchedulingPolicy) -> None:
    engine.scheduler = Scheduler(engine.config.scheduler, policy, engine.scheduler.tables)


def _params(**changes) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 6, "ignore_eos": True, "seed": 0, **changes})


def test_a_full_prefix_hit_still_runs_one_token() -> None:
    """A prompt whose every block is cached leaves a query of one token, never of none (a bug of nano-vllm)."""
    engine = make_engine(num_blocks=16, block_size=4)
    prompt = [0, 1, 1, 0, 1, 0, 0, 1]
    engine.add_request(prompt, _params())
    first = _drain(engine)
    before = engine.runner.num_computed_tokens
    (second,) = engine.add_request(prompt, _params())
    engine.step()
    assert engine.request(second).num_cached_tokens == 4
    # One block of four was found; the block of the newest token is computed again.
    assert engine.runner.num_computed_tokens - before == 4
    assert _drain(engine)[second] == first[0]


def test_a_full_prefix_hit_with_blocks_of_one_runs_exactly_one_token() -> None:
    engine = make_engine(num_blocks=32, block_size=1)
    prompt = [0, 1, 1, 0, 1]
    engine.add_request(prompt, _params())
    _drain(engine)
    before = engine.runner.num_computed_tokens
    engine.add_request(prompt, _params())
    engine.step()
    assert engine.runner.num_computed_tokens - before == 1


def test_preemption_and_a_prefix_hit_leave_the_block_table_in_range() -> None:
    """A preempted request comes back through its own cached blocks (nano-vllm read an out-of-range table there)."""
    engine = make_engine(num_blocks=5, block_size=2, max_num_seqs=2, max_num_batched_tokens=8)
    prompts = [[0, 1, 0, 1], [1, 0, 1, 1]]
    ids = [engine.add_request(p, _params(max_tokens=6))[0] for p in prompts]
    outputs = _drain(engine)
    assert engine.scheduler.num_preemptions > 0
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert outputs[request_id] == continuation(prompt, 0, 10, frozenset())


def test_siblings_share_the_prompt_and_copy_only_its_last_block() -> None:
    engine = make_engine(num_blocks=64, block_size=4, prefix_caching=False)
    engine.add_request([0, 1] * 5, _params(n=3))
    engine.step()
    computed = engine.runner.num_computed_tokens
    assert computed == 10
    engine.step()
    # The first decodes, the two others compute the last prompt token again on a copy of its block.
    assert engine.runner.num_computed_tokens - computed == 3
    assert engine.runner.num_copies == 2
    # Two full blocks are shared, each sibling has a third of its own.
    assert engine.scheduler.tables.pool.num_used == 2 + 3
    _drain(engine)


def test_freed_blocks_are_reused_after_preemption() -> None:
    engine = make_engine(num_blocks=4, block_size=4, prefix_caching=False, max_num_seqs=4)
    for _ in range(4):
        engine.add_request([0, 1, 0], _params(max_tokens=10))
    _drain(engine)
    assert engine.scheduler.num_preemptions > 0
    assert engine.scheduler.tables.pool.num_available == 4


def test_recomputed_tokens_are_counted_once_each() -> None:
    engine = make_engine(num_blocks=3, block_size=4, prefix_caching=False, max_num_seqs=2)
    for _ in range(2):
        engine.add_request([0, 1, 0], _params(max_tokens=9))
    _drain(engine)
    # Each request alone would compute 3 + 9 - 1 tokens.
    again = engine.runner.num_computed_tokens - 2 * 11
    assert engine.scheduler.num_recomputed_tokens == again > 0


@pytest.mark.parametrize(
    ("prompt", "params", "told"),
    [
        ([], {}, "prompt: is empty"),
        ([0] * 20, {}, "context of model.max_model_len=20: shorten it to 19"),
        ([0] * 10, {"max_tokens": 8}, "need 5 K/V blocks of 4, the pool has cache.num_blocks=4"),
        ([0, 5], {}, "5 is outside of the vocabulary"),
        ([0, -1], {}, "-1 is outside of the vocabulary"),
    ],
)
def test_a_request_that_can_never_run_is_refused(prompt, params, told) -> None:
    engine = make_engine(num_blocks=4, block_size=4, max_model_len=20)
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        engine.add_request(prompt, _params(**params))
    assert not engine.has_unfinished


def test_a_request_ends_at_the_end_of_the_context() -> None:
    engine = make_engine(num_blocks=8, block_size=4, max_model_len=12)
    engine.add_request([0] * 10, _params(max_tokens=100))
    while engine.has_unfinished:
        engine.step()
    (request,) = engine.take_finished()
    assert request.num_tokens == 12 and request.finish_reason is FinishReason.LENGTH


class _Lying(SchedulingPolicy):
    """Breaks one rule, named by `lie`, in its third step."""

    def __init__(self, lie: str) -> None:
        self.lie = lie
        self.calls = 0
        self.kept = None

    def plan(self, state, now_s):
        everyone = [Allotment(r) for r in self.order(state, now_s)]
        self.calls += 1
        if self.calls < 3:
            self.kept = self.kept or everyone[0].request
            return everyone
        return {
            "nothing": lambda: [],
            "twice": lambda: [everyone[0], everyone[0]],
            "too many": lambda: [Allotment(everyone[0].request, 99)],
            "none": lambda: [Allotment(everyone[0].request, 0)],
            "budget": lambda: [
                Allotment(r, r.num_tokens - r.num_computed_tokens) for r in (a.request for a in everyone)
            ],
            "finished": lambda: [Allotment(self.kept)],
        }[self.lie]()


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        ("nothing", "progress"),
        ("twice", "once a step"),
        ("too many", "token counts"),
        ("none", "token counts"),
        ("budget", "token budget"),
        ("finished", "known requests"),
    ],
)
def test_a_lying_policy_is_named_with_its_rule_and_nothing_leaks(lie: str, rule: str) -> None:
    engine = make_engine(num_blocks=32, block_size=2, max_num_batched_tokens=6, prefix_caching=False)
    _use_policy(engine, _Lying(lie))
    ids = [
        engine.add_request([0, 1, 1, 0, 1, 0, 1], _params(max_tokens=1 if lie == "finished" else 6))[0]
        for _ in range(3)
    ]
    with pytest.raises(PolicyError, match=f"_Lying: breaks the rule of {rule}"):
        for _ in range(4):
            engine.step()
            if lie == "finished" and engine.scheduler.policy.calls == 2:
                engine.abort(engine.scheduler.policy.kept.request_id)
    engine.check()
    for request_id in ids:
        engine.abort(request_id)
    engine.check()
    assert engine.scheduler.tables.pool.num_used == 0


class _Shortest(SchedulingPolicy):
    preemptive = True

    def key(self, request, now_s):
        return (request.predicted_output_tokens - request.num_output_tokens, request.arrival_s)


def test_a_preemptive_key_takes_the_seat_of_whoever_ranks_behind() -> None:
    engine = make_engine(num_blocks=64, block_size=2, max_num_seqs=1)
    _use_policy(engine, _Shortest())
    (long,) = engine.add_request([0, 1], _params(max_tokens=20))
    engine.step()
    (short,) = engine.add_request([1, 0], _params(max_tokens=2))
    ended = []
    while engine.has_unfinished:
        engine.step()
        engine.check()
        ended += [r.request_id for r in engine.take_finished()]
    assert ended == [short, long] and engine.scheduler.num_preemptions == 1


def test_static_batching_admits_nobody_until_the_batch_is_done() -> None:
    engine = make_engine(num_blocks=64, block_size=2, policy="static.StaticBatching", max_num_seqs=2)
    for max_tokens in (2, 6, 3):
        engine.add_request([0, 1, 1], _params(max_tokens=max_tokens))
    running = []
    while engine.has_unfinished:
        running.append({r.request_id for r in engine.scheduler.running})
        engine.step()
    assert {0, 1} in running and {1} in running
    assert all(2 not in batch or batch == {2} for batch in running)


def test_a_static_batch_is_full_before_its_first_decode() -> None:
    """Prompts that take several steps do not close the batch behind the first of them."""
    engine = make_engine(num_blocks=64, block_size=2, policy="static.StaticBatching", max_num_seqs=3)
    for bits in (0, 1, 0, 1, 0):
        engine.add_request([bits] * 14, _params(max_tokens=4))
    sizes = []
    while engine.has_unfinished:
        report = engine.step()
        if report.num_decode_tokens:
            sizes.append(report.num_decode_tokens)
    assert sizes == [3, 3, 3, 2, 2, 2]


def test_prefill_first_never_mixes_prefills_with_decodes() -> None:
    engine = make_engine(num_blocks=64, block_size=2, policy="prefill_first.PrefillFirst", max_num_batched_tokens=4)
    engine.add_request([0, 1, 1, 0, 1, 1], _params())
    kinds = []
    for step in range(12):
        if step == 3:
            engine.add_request([1, 1, 1, 0, 1, 1, 0], _params())
        if engine.has_unfinished:
            report = engine.step()
            kinds.append((report.num_prefill_tokens > 0, report.num_decode_tokens > 0))
    assert (True, True) not in kinds and (True, False) in kinds and (False, True) in kinds


def test_without_chunked_prefill_a_prompt_beyond_the_budget_runs_alone_in_one_step() -> None:
    engine = make_engine(num_blocks=64, block_size=2, max_num_batched_tokens=4, chunked_prefill=False)
    engine.add_request([0, 1] * 5, _params())
    engine.add_request([0, 1], _params())
    assert engine.step().num_prefill_tokens == 10
    _drain(engine)


def test_an_unknown_policy_is_one_line() -> None:
    config = EngineConfig.from_flat(path="x", policy=Component(target="minivllm.scheduler.fcfs.Nope"))
    with pytest.raises(ValueError, match=r"scheduler\._target_='minivllm\.scheduler\.fcfs\.Nope': cannot be imported"):
        Engine(config, make_engine(num_blocks=1, block_size=1).runner)
