"""The exactness rule with drafts: whoever drafts, however much, under whatever pressure, greedy tokens are those of
transformers, and a seeded request that is drafted for with points gets the tokens that it gets alone.

Engine, load and drafter are drawn. What the draws reached is counted, printed and asserted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from draft_targets import LENGTHS, MOST_TOKENS, DraftedTarget, make_target
from hypothesis import HealthCheck, given, seed, settings
from speculating import TickingClock
from tiny import first_wrong

from minivllm import LLM, SamplingParams
from minivllm.config import PreemptionConfig, SpeculationConfig

_SAMPLING = (
    SamplingParams(temperature=0.4, max_tokens=MOST_TOKENS, ignore_eos=True),
    SamplingParams(temperature=0.25, top_p=0.85, max_tokens=MOST_TOKENS, ignore_eos=True),
    SamplingParams(temperature=0.8, top_k=7, min_p=0.02, max_tokens=MOST_TOKENS, ignore_eos=True),
    SamplingParams(
        temperature=0.3, repetition_penalty=1.05, presence_penalty=0.1, max_tokens=MOST_TOKENS, ignore_eos=True
    ),
    SamplingParams(temperature=0, frequency_penalty=0.05, max_tokens=MOST_TOKENS, ignore_eos=True),
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> DraftedTarget:
    return make_target(tmp_path_factory.mktemp("exactness"))


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> DraftedTarget:
    folder = tmp_path_factory.mktemp("sliding")
    return make_target(folder, architecture="Mistral", sliding_window=9)


@st.composite
def engines(draw) -> dict:
    """Options of an engine, and of `_make_llm`."""
    return {
        "length": draw(st.sampled_from(sorted(LENGTHS))),
        "num_draft_tokens": draw(st.integers(1, 8)),
        "block_size": draw(st.sampled_from([1, 2, 4, 16, 32])),
        "tight": draw(st.booleans()),
        "prefix_caching": draw(st.sampled_from([True, True, False])),
        "max_num_batched_tokens": draw(st.sampled_from([5, 16, 64, 256])),
        "chunked_prefill": draw(st.booleans()),
        "max_num_seqs": draw(st.sampled_from([1, 3, 8, 16])),
        "kernels": draw(st.sampled_from(["numba", "numba", "torch"])),
        "preemption": draw(st.sampled_from(["recompute", PreemptionConfig.named("swap", num_swap_blocks=64)])),
    }


@st.composite
def loads(draw) -> list[tuple[int, int, int]]:
    """Of each request: which prompt, how many tokens, how many continuations (or which seed)."""
    request = st.tuples(st.integers(0, 47), st.sampled_from([1, 2, 7, MOST_TOKENS]), st.sampled_from([1, 1, 1, 3]))
    return draw(st.lists(request, min_size=2, max_size=draw(st.sampled_from([3, 8, 16]))))


class Trial:
    """Runs what is drawn, and counts what was reached."""

    def __init__(self, target: DraftedTarget, texts: list[tuple[int, ...]], *, sample_drafts: bool = True) -> None:
        self.target = target
        self.drafters = target.drafters(texts)
        self.sample_drafts = sample_drafts
        self.reached: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def make_llm(self, load, *, drafter: str, length, num_draft_tokens, tight, **options) -> LLM:
        self.name = drafter
        longest = max(len(self.target.prompts[prompt]) + num_tokens for prompt, num_tokens, _ in load)
        needed = -(-longest // options["block_size"])
        llm = LLM(
            str(self.target.folder),
            num_blocks=needed if tight else 40 * needed,
            speculation=SpeculationConfig(
                drafter=self.drafters[drafter],
                num_draft_tokens=num_draft_tokens,
                length=LENGTHS[length],
                sample_drafts=self.sample_drafts,
            ),
            **options,
        )
        # Adaptive lengths go by measured times.
        llm.engine.clock = llm.engine.runner._clock = TickingClock()
        return llm

    def generate(self, llm: LLM, load, params):
        """The engine is checked after it, and its steps are counted."""
        step, before = llm.engine.step, llm.engine.scheduler.num_preemptions

        def counting():
            report = step()
            drafts = report.num_draft_tokens
            self.accepted[self.name] += report.num_accepted_tokens
            self.rejected[self.name] += drafts - report.num_accepted_tokens
            self.reached["preemptions beside drafts"] += bool(report.num_preemptions and drafts)
            self.reached["prefills beside drafts"] += bool(report.num_prefill_tokens and drafts)
            self.reached["decodes without drafts beside drafts"] += (
                0 < report.num_verifications < report.num_decode_tokens
            )
            return report

        llm.engine.step = counting
        outputs = llm.generate([{"prompt_token_ids": list(self.target.prompts[p])} for p, _, _ in load], params)
        llm.engine.step = step
        self.reached["preemptions"] += llm.engine.scheduler.num_preemptions - before
        self.reached["cached tokens"] += sum(output.num_cached_tokens for output in outputs)
        llm.engine.check()
        assert llm.engine.scheduler.tables.pool.num_used == 0
        return outputs

    def check_reached(self, num_equal: int) -> None:
        print(dict(self.reached), "accepted:", dict(self.accepted), "rejected:", dict(self.rejected), sep="\n")
        assert self.reached["equal"] >= num_equal and self.reached["tie"] <= 0.01 * self.reached["equal"]
        for what in ("preemptions", "cached tokens", "preemptions beside drafts", "prefills beside drafts"):
            assert self.reached[what] >= 3, what
        assert self.reached["decodes without drafts beside drafts"] >= 10
        for drafter in set(self.drafters) - {"off"}:
            assert drafter == "draft model itself" or self.rejected[drafter], drafter
        for drafter in ("draft model noisy", "draft model itself", "early exit 2", "medusa tree", "foretold"):
            assert self.accepted[drafter], drafter


def _check_greedy(trial: Trial, drafter: str, load, engine, times: int = 2) -> None:
    llm = trial.make_llm(load, drafter=drafter, **engine)
    # The same prompts again find the blocks of the first time.
    for _ in range(times):
        # Some sample, from drafts that are drawn, and leave the others alone.
        params = [
            SamplingParams(temperature=float(i % 4 == 3), max_tokens=m, n=n, ignore_eos=True, seed=i)
            for i, (_, m, n) in enumerate(load)
        ]
        outputs = trial.generate(llm, load, params)
        for (prompt, num_tokens, n), wanted, output in zip(load, params, outputs, strict=True):
            assert len(output.outputs) == n
            for completion in output.outputs:
                assert len(completion.token_ids) == num_tokens
                if not wanted.greedy:
                    continue
                outcome = first_wrong(completion.token_ids, *trial.target.greedy[prompt])
                assert outcome in ("equal", "tie"), outcome
                trial.reached[outcome] += 1


def _for_every_drafter(trial: Trial, max_examples: int, check, *more) -> None:
    """Check so many drawn engines and loads for each."""
    for number, drafter in enumerate(trial.drafters):
        drawn = given(st.just(drafter), loads(), engines(), *more)(check)
        limits = settings(
            max_examples=max_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        seed(number)(limits(drawn))()


def test_greedy_tokens_are_those_of_transformers_whoever_drafts(target: DraftedTarget) -> None:
    trial = Trial(target, target.texts)
    _for_every_drafter(trial, 6, lambda drafter, load, engine: _check_greedy(trial, drafter, load, engine))
    trial.check_reached(num_equal=700)


def test_greedy_tokens_with_a_sliding_window_are_those_of_transformers_whoever_drafts(sliding: DraftedTarget) -> None:
    trial = Trial(sliding, sliding.texts)
    for number, drafter in enumerate(trial.drafters):
        load = [(prompt, MOST_TOKENS, 1) for prompt in range(number % 4, len(sliding.prompts), 4)]
        engine = {
            "length": "fixed",
            "num_draft_tokens": 4,
            "block_size": 4,
            "tight": False,
            "kernels": "numba" if number % 2 else "torch",
        }
        _check_greedy(trial, drafter, load, engine, times=1)
    assert trial.reached["equal"] > 100 and sum(trial.accepted.values()) > 500


def test_seeded_tokens_are_those_of_no_speculation_where_drafts_are_points(target: DraftedTarget) -> None:
    alone = LLM(str(target.folder), block_size=16)
    wanted = {}
    for index, params in enumerate(_SAMPLING):
        for number in (1, 3):
            outputs = alone.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in target.prompts], _seeded(params, number)
            )
            wanted.update({(p, index, number): output.outputs[0].token_ids for p, output in enumerate(outputs)})
    texts = [(*target.prompts[prompt], *tokens) for (prompt, _, _), tokens in wanted.items()]
    trial = Trial(target, texts, sample_drafts=False)

    def check(drafter, load, engine, first) -> None:
        llm = trial.make_llm(load, drafter=drafter, **engine)
        kinds = [(first + place) % len(_SAMPLING) for place in range(len(load))]
        params = [
            _seeded(_SAMPLING[kind], number, max_tokens=m) for kind, (_, m, number) in zip(kinds, load, strict=True)
        ]
        outputs = trial.generate(llm, load, params)
        for kind, (prompt, num_tokens, number), output in zip(kinds, load, outputs, strict=True):
            assert output.outputs[0].token_ids == wanted[prompt, kind, number][:num_tokens]
            trial.reached["equal"] += 1

    _for_every_drafter(trial, 5, check, st.integers(0, len(_SAMPLING) - 1))
    trial.check_reached(num_equal=200)


def _seeded(params: SamplingParams, number: int, **changes) -> SamplingParams:
    return replace(params, seed=number, **changes)
