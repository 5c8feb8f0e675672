"""All that a user sees is as without speculation: tokens, text, reasons, logprobs, streams; stops within an emission
included. Seeds are given, and drafts are points, so the very tokens must be those of no speculation."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from draft_targets import MOST_TOKENS, DraftedTarget, make_target
from hypothesis import HealthCheck, given, seed, settings
from tiny import save_tokenizer

from minivllm import LLM, SamplingParams
from minivllm.config import SpeculationConfig
from minivllm.llm import RequestOutput

_DRAFTERS = ("foretold", "ngram", "draft model noisy", "early exit 2", "medusa tree", "eagle tree")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> DraftedTarget:
    target = make_target(tmp_path_factory.mktemp("outputs"), bos_token_id=0, eos_token_id=1)
    save_tokenizer(target.folder)
    return target


@pytest.fixture(scope="module")
def alone(target: DraftedTarget) -> LLM:
    return LLM(str(target.folder), block_size=4, num_blocks=400)


@pytest.fixture(scope="module")
def speculating(target: DraftedTarget) -> dict[str, LLM]:
    return {name: _make_llm(target, name) for name in _DRAFTERS}


def _make_llm(target: DraftedTarget, name: str, **options) -> LLM:
    speculation = SpeculationConfig(
        drafter=target.drafters(target.texts)[name], num_draft_tokens=6, sample_drafts=False
    )
    return LLM(str(target.folder), speculation=speculation, **{"block_size": 4, "num_blocks": 400, **options})


@st.composite
def requests(draw) -> list[tuple[int, SamplingParams]]:
    """Prompts, and whatever may end their continuations."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        params = SamplingParams(
            temperature=draw(st.sampled_from([0.0, 0.0, 0.3])),
            seed=draw(st.integers(0, 2)),
            max_tokens=draw(st.sampled_from([1, 2, 5, 13, MOST_TOKENS])),
            n=draw(st.sampled_from([1, 1, 2])),
            ignore_eos=draw(st.booleans()),
            stop=tuple(draw(st.lists(st.sampled_from(["w7", "2 w", " w6", "8 w5", "never", "w3", "4"]), max_size=2))),
            stop_token_ids=tuple(draw(st.lists(st.integers(3, 88), max_size=6, unique=True))),
            logprobs=draw(st.sampled_from([None, None, 0, 3])),
        )
        made.append((draw(st.integers(0, 47)), params))
    return made


def _run(llm: LLM, target: DraftedTarget, load) -> list[RequestOutput]:
    prompts = [{"prompt_token_ids": list(target.prompts[prompt])} for prompt, _ in load]
    outputs = llm.generate(prompts, [params for _, params in load])
    llm.engine.check()
    assert llm.engine.scheduler.tables.pool.num_used == 0
    return outputs


def _assert_same(got: RequestOutput, wanted: RequestOutput) -> None:
    assert len(got.outputs) == len(wanted.outputs)
    for one, other in zip(got.outputs, wanted.outputs, strict=True):
        assert (one.token_ids, one.text, one.finish_reason, one.stop_reason, one.error) == (
            other.token_ids,
            other.text,
            other.finish_reason,
            other.stop_reason,
            other.error,
        )
        assert (one.logprobs is None) == (other.logprobs is None)
        if one.logprobs is not None and other.logprobs is not None:
            assert len(one.logprobs) == len(one.token_ids)
            for ours, theirs in zip(one.logprobs, other.logprobs, strict=True):
                assert list(ours) == list(theirs)
                assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-4)


def test_outputs_are_those_of_no_speculation_whatever_ends_them(target, alone: LLM, speculating) -> None:
    reasons: Counter[str | None] = Counter()

    def check(name: str, load) -> None:
        for got, wanted in zip(_run(speculating[name], target, load), _run(alone, target, load), strict=True):
            _assert_same(got, wanted)
            reasons.update("stop string" if c.stop_reason else c.finish_reason for c in got.outputs)

    limits = settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    for number, name in enumerate(_DRAFTERS):
        seed(number)(limits(given(st.just(name), requests())(check)))()
    print(dict(reasons))
    assert min(reasons["stop string"], reasons["stop"], reasons["length"]) > 50


def _collect(llm: LLM, prompts, params) -> tuple[dict, list[int]]:
    """What the deltas of a stream add up to, {(prompt, index): (tokens, text, reason)}, and tokens of each delta."""
    whole: dict[tuple[int, int], tuple[tuple[int, ...], str, str | None]] = {}
    sizes = []
    for delta in llm.stream(prompts, params):
        tokens, text, reason = whole.get((delta.prompt_index, delta.index), ((), "", None))
        assert reason is None, "something came after the end"
        whole[delta.prompt_index, delta.index] = (
            tokens + delta.token_ids,
            text + delta.text,
            delta.finish_reason,
        )
        sizes.append(len(delta.token_ids))
    return whole, sizes


@pytest.mark.parametrize("name", _DRAFTERS)
def test_a_stream_adds_up_to_what_generate_returns(target, alone: LLM, speculating, name: str) -> None:
    prompts = [{"prompt_token_ids": list(target.prompts[i])} for i in (7, 11, 23, 40)]
    params = [
        SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, **more)
        for more in ({}, {"stop": ("4",)}, {"n": 2}, {"stop": ("8 w", "w1"), "stop_token_ids": (60, 61)})
    ]
    wanted = {
        (i, c.index): (c.token_ids, c.text, c.finish_reason)
        for i, output in enumerate(alone.generate(prompts, params))
        for c in output.outputs
    }
    got, sizes = _collect(speculating[name], prompts, params)
    assert got == wanted
    assert name != "foretold" or max(sizes) > 3


@pytest.mark.parametrize("name", _DRAFTERS)
def test_a_stream_that_is_closed_early_leaves_nothing_behind(target, speculating, name: str) -> None:
    llm = speculating[name]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    for num_deltas in (1, 3, 6):
        tokens: Counter[int] = Counter()
        stream = llm.stream([{"prompt_token_ids": list(target.prompts[i])} for i in (3, 19)], params)
        for _ in range(num_deltas):
            delta = next(stream)
            start = tokens[delta.prompt_index]
            greedy = target.greedy[(3, 19)[delta.prompt_index]][0]
            assert delta.token_ids == greedy[start : start + len(delta.token_ids)]
            tokens[delta.prompt_index] += len(delta.token_ids)
        stream.close()
        assert not llm.engine.has_unfinished and llm.engine.scheduler.tables.pool.num_used == 0
    assert (
        llm.generate({"prompt_token_ids": list(target.prompts[3])}, params)[0].outputs[0].token_ids
        == (target.greedy[3][0])
    )


@pytest.mark.parametrize("name", _DRAFTERS)
def test_an_abort_in_mid_flight_leaves_the_others_alone(target, name: str) -> None:
    engine = _make_llm(target, name, num_blocks=30).engine
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    places = dict(enumerate((5, 10, 15, 20)))
    for prompt in places.values():
        engine.add_request(list(target.prompts[prompt]), params)
    num_steps = 0
    while engine.has_unfinished:
        engine.step()
        num_steps += 1
        if num_steps in (2, 4):
            engine.abort(num_steps // 2)
        engine.check()
    finished = {request.request_id: request for request in engine.take_finished()}
    for request_id, prompt in places.items():
        request = finished[request_id]
        tokens = tuple(request.output_token_ids)
        assert tokens == target.greedy[prompt][0][: len(tokens)]
        assert len(tokens) == 20 or request_id in (1, 2)


def test_text_prompts_give_the_same_text(target, alone: LLM, speculating) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    prompts = ["w3 w4 w5", "w80", "w3 w4 w5 w3 w4"]
    for llm in speculating.values():
        for got, wanted in zip(llm.generate(prompts, params), alone.generate(prompts, params), strict=True):
            assert got.outputs[0].text
            _assert_same(got, wanted)
