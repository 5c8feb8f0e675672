"""Drafts come last: what budget, blocks, `max_tokens` and context leave, and nobody waits or is preempted for them."""

from __future__ import annotations

from functools import partial

import pytest
from symbolic import continuation, make_engine
from symbolic_drafts import DraftingRunner

from minivllm.config import Component, SpeculationConfig
from minivllm.engine import Engine
from minivllm.plan import Chunk, StepPlan
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler.drafting import decodes
from minivllm.speculation.lengths.base import DraftCandidate, DraftLengthPolicy, StepOutcome


class Scripted(DraftLengthPolicy):
    """Answers what it is told to, and keeps what it hears."""

    def __init__(self, *, num_draft_tokens: int, answer: object = None) -> None:
        super().__init__(num_draft_tokens=num_draft_tokens)
        self.answer = answer
        self.asked: list[tuple[list[DraftCandidate], int]] = []
        self.observed: list[StepOutcome] = []
        self.forgotten: list[int] = []

    def choose(self, candidates, num_prefill_tokens):
        self.asked.append((list(candidates), num_prefill_tokens))
        return [c.limit for c in candidates] if self.answer is None else self.answer

    def observe(self, step: StepOutcome) -> None:
        self.observed.append(step)

    def forget(self, request_id: int) -> None:
        self.forgotten.append(request_id)


def _make_engine(*, num_draft_tokens: int = 4, percent_right: int = 100, answer: object = None, **options) -> Engine:
    engine = make_engine(
        **{"num_blocks": 64, "block_size": 4, "max_num_batched_tokens": 64, **options},
        speculation=SpeculationConfig(
            drafter=Component(target="speculating.Garbage"), num_draft_tokens=num_draft_tokens
        ),
        make_runner=partial(DraftingRunner, percent_right=percent_right),
    )
    drafting = engine.scheduler.drafting
    assert drafting is not None
    drafting._policy = Scripted(num_draft_tokens=num_draft_tokens, answer=answer)
    return engine


def _policy(engine: Engine) -> Scripted:
    assert engine.scheduler.drafting is not None and isinstance(engine.scheduler.drafting._policy, Scripted)
    return engine.scheduler.drafting._policy


def _params(**changes) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 20, "ignore_eos": True, "seed": 0, **changes})


def _plans(engine: Engine) -> list[StepPlan]:
    """The plans that the engine launches from now on."""
    plans: list[StepPlan] = []
    launch = engine.runner.launch

    def launching(plan: StepPlan):
        plans.append(plan)
        return launch(plan)

    engine.runner.launch = launching
    return plans


def _drain(engine: Engine) -> dict[int, list[int]]:
    outputs = {}
    while engine.has_unfinished:
        engine.step()
        engine.check()
        for request in engine.take_finished():
            outputs[request.request_id] = request.output_token_ids
    return outputs


@pytest.mark.parametrize(
    ("chunk", "answer"),
    [
        (Chunk(request_id=0, start=5, num_tokens=1, samples=True), True),
        (Chunk(request_id=0, start=5, num_tokens=2, samples=True), False),
        (Chunk(request_id=0, start=5, num_tokens=1, samples=False), False),
        (Chunk(request_id=0, start=0, num_tokens=1, samples=True), False),
    ],
)
def test_drafts_follow_a_newest_token_behind_kv_that_is_there(chunk: Chunk, answer: bool) -> None:
    assert decodes(chunk) is answer


def test_no_draft_reaches_past_max_tokens() -> None:
    """The last verification gives one token more than drafts."""
    engine = _make_engine(num_draft_tokens=8)
    plans = _plans(engine)
    (request_id,) = engine.add_request([0, 1, 0], _params(max_tokens=6))
    assert len(_drain(engine)[request_id]) == 6
    # One token comes of the prefill, and five are left: four drafts and a bonus.
    assert [plan.chunks[0].num_draft_tokens for plan in plans] == [0, 4]


def test_no_draft_reaches_past_the_context() -> None:
    engine = _make_engine(num_draft_tokens=8, percent_right=0, max_model_len=12, block_size=1)
    plans = _plans(engine)
    (request_id,) = engine.add_request([0, 1, 0, 1, 0, 1, 0], _params())
    assert len(_drain(engine)[request_id]) == 5
    assert [plan.chunks[0].num_draft_tokens for plan in plans] == [0, 3, 2, 1, 0]


def test_a_request_with_one_token_left_is_no_candidate() -> None:
    engine = _make_engine()
    engine.add_request([0, 1], _params(max_tokens=2))
    _drain(engine)
    assert _policy(engine).asked == []


def test_drafts_take_the_budget_that_the_step_leaves_first_come_first_served() -> None:
    engine = _make_engine(num_draft_tokens=4, max_num_batched_tokens=10)
    for _ in range(3):
        engine.add_request([0, 1], _params())
    plans = _plans(engine)
    engine.step()
    engine.step()
    # Three newest tokens leave seven.
    assert {chunk.request_id: chunk.num_draft_tokens for chunk in plans[1].chunks} == {0: 4, 1: 3, 2: 0}


def test_a_prefill_comes_before_drafts() -> None:
    engine = _make_engine(num_draft_tokens=4, max_num_batched_tokens=8)
    engine.add_request([0, 1], _params())
    engine.step()
    engine.add_request([1] * 20, _params())
    plans = _plans(engine)
    engine.step()
    assert [(c.num_tokens, c.num_draft_tokens) for c in plans[0].chunks] == [(1, 0), (7, 0)]
    assert _policy(engine).asked[-1][1] == 7


def test_drafts_take_free_blocks_and_preempt_nobody() -> None:
    """Two requests that just fit: without room there are no drafts, and as many steps as without speculation."""
    engine = _make_engine(num_blocks=6, block_size=4, prefix_caching=False, percent_right=0)
    for prompt in ([0, 1, 0, 1], [1, 1, 0, 1]):
        engine.add_request(prompt, _params(max_tokens=8))
    plans = _plans(engine)
    outputs = _drain(engine)
    assert engine.scheduler.num_preemptions == 0
    assert outputs == {
        0: continuation([0, 1, 0, 1], 0, 12, frozenset()),
        1: continuation([1, 1, 0, 1], 0, 12, frozenset()),
    }
    for plan in plans:
        for chunk in plan.chunks:
            assert chunk.start + chunk.num_tokens + chunk.num_draft_tokens <= 12


def test_drafts_fill_the_slots_of_the_last_block_where_no_other_is_free() -> None:
    engine = _make_engine(num_blocks=2, block_size=4, num_draft_tokens=6, prefix_caching=False, percent_right=0)
    engine.add_request([0, 1, 0], _params(max_tokens=5))
    plans = _plans(engine)
    engine.step()
    engine.step()
    engine.add_request([1], _params(max_tokens=2))
    engine.step()
    # Slots 5 to 7 behind the newest token at 4, of which one token more than drafts is wanted.
    assert [c.num_draft_tokens for plan in plans for c in plan.chunks if c.request_id == 0] == [0, 3, 2]


def test_surplus_blocks_go_back_when_drafts_are_rejected() -> None:
    engine = _make_engine(num_draft_tokens=8, percent_right=0, block_size=2)
    (request_id,) = engine.add_request([0, 1], _params())
    engine.step()
    pool = engine.scheduler.tables.pool
    for _ in range(5):
        report = engine.step()
        assert report.num_draft_tokens == 8 and report.num_accepted_tokens == 0
        request = engine.request(request_id)
        assert request is not None and pool.num_used == engine.scheduler.tables.num_blocks_for(
            request.num_computed_tokens
        )


def test_accepted_drafts_are_computed_tokens_and_are_published() -> None:
    engine = _make_engine(num_draft_tokens=7, block_size=2)
    (request_id,) = engine.add_request([0, 1], _params())
    engine.step()
    engine.step()
    request = engine.request(request_id)
    assert request is not None and request.num_computed_tokens == 2 + 1 + 7 and request.num_output_tokens == 9
    again = engine.add_request(request.token_ids[:11], _params(max_tokens=1))[0]
    outputs = _drain(engine)
    assert len(outputs[again]) == 1 and engine.scheduler.tables.pool.num_used == 0


def test_a_second_request_hits_the_blocks_of_accepted_drafts() -> None:
    engine = _make_engine(num_draft_tokens=7, block_size=2)
    (first,) = engine.add_request([0, 1], _params(max_tokens=9))
    text = [0, 1, *_drain(engine)[first]]
    engine.add_request(text, _params(max_tokens=3))
    while engine.has_unfinished:
        engine.step()
    (second,) = engine.take_finished()
    assert second.num_cached_tokens == 10
    assert second.output_token_ids == continuation(text, 0, len(text) + 3, frozenset())


def test_the_policy_hears_of_every_decoding_request_and_of_ends() -> None:
    engine = _make_engine(num_draft_tokens=3)
    engine.add_request([0, 1], _params(max_tokens=8))
    engine.step()
    engine.add_request([0] * 5, _params(max_tokens=1))
    engine.step()
    policy = _policy(engine)
    assert [len(step.outcomes) for step in policy.observed] == [0, 1]
    assert [step.num_prefill_tokens for step in policy.observed] == [2, 5]
    (outcome,) = policy.observed[1].outcomes
    assert (outcome.request_id, outcome.num_allowed_tokens, outcome.num_draft_tokens) == (0, 3, outcome.draft_depth)
    assert outcome.num_accepted_tokens == outcome.num_draft_tokens
    assert policy.forgotten == [1]
    _drain(engine)
    assert policy.forgotten == [1, 0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([5], "draft_length=Scripted: 5 drafts for request 0: must be in [0, 4]"),
        ([-1], "draft_length=Scripted: -1 drafts for request 0: must be in [0, 4]"),
    ],
    ids=str,
)
def test_a_policy_that_allows_what_cannot_be_is_named_in_one_line(answer, message: str) -> None:
    engine = _make_engine(answer=answer)
    engine.add_request([0, 1], _params())
    engine.step()
    with pytest.raises(ValueError) as caught:
        engine.step()
    assert str(caught.value) == message


@pytest.mark.parametrize("answer", [[1.5], ["2"], [None], [], [1, 1]], ids=str)
def test_an_answer_of_another_kind_or_number_is_one_line_too(answer) -> None:
    engine = _make_engine(answer=answer)
    engine.add_request([0, 1], _params())
    engine.step()
    with pytest.raises(ValueError, match=r"^draft_length=Scripted: .*[^\n]$"):
        engine.step()
