"""Speculation on the GPU's runner, whole, under Triton's interpreter: its tokens are those of the other runner, and where
drafts are points, those of no speculation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Oracle, first_wrong, save_tiny_llama

from minivllm import LLM, SamplingParams
from minivllm.config import SpeculationConfig
from minivllm.plan import StepReport

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
PROMPTS = [[3, 4, 5, 3, 4, 5, 3], [6], [7, 8, 9, 10, 11]]
# What greedy decoding, filters, penalties and draws ask of a step together.
KINDS = [
    SamplingParams(temperature=0.8, top_k=7, seed=1, max_tokens=5, ignore_eos=True),
    SamplingParams(temperature=0, repetition_penalty=1.3, frequency_penalty=0.5, max_tokens=4, ignore_eos=True),
    SamplingParams(temperature=0.7, presence_penalty=0.3, seed=3, max_tokens=5, ignore_eos=True),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("target"), **SHAPE)


@pytest.fixture(scope="module")
def draft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than the target, but for the first tokens that it likes."""
    return save_tiny_llama(tmp_path_factory.mktemp("draft"), **SHAPE, num_hidden_layers=1)


def _make_llm(folder: Path, speculation: SpeculationConfig | None = None, **options: Any) -> LLM:
    options = {"kernels": "triton", "num_blocks": 14, "block_size": 4, "max_num_seqs": 3, **options}
    return LLM(str(folder), speculation=speculation or SpeculationConfig(), **options)


def _greedy(num_tokens: int = 5, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, **more)


def _run(llm: LLM, params: Any, prompts: Sequence[Sequence[int]] = PROMPTS) -> tuple[list[Any], list[StepReport]]:
    """What each request got, tokens or failure, and the steps."""
    given = params if isinstance(params, list) else [params] * len(prompts)
    ids = [llm.engine.add_request(list(prompt), one)[0] for prompt, one in zip(prompts, given, strict=True)]
    steps = []
    while llm.engine.has_unfinished:
        steps.append(llm.engine.step())
    llm.engine.check()
    by_id = {request.request_id: request for request in llm.engine.take_finished()}
    return [tuple(by_id[one].output_token_ids) or by_id[one].error for one in ids], steps


def _named(name: str, **options: Any) -> SpeculationConfig:
    return SpeculationConfig.named(name, **options)


def test_greedy_tokens_are_those_of_transformers_whoever_drafts(folder: Path) -> None:
    oracle = Oracle(folder)
    for speculation in (_named("ngram", num_draft_tokens=4), _named("draft_model", path=str(folder))):
        got, steps = _run(_make_llm(folder, speculation), _greedy())
        for tokens, prompt in zip(got, PROMPTS, strict=True):
            assert first_wrong(tokens, *oracle.greedy(tuple(prompt), 5)) == "equal"
        assert sum(step.num_draft_tokens for step in steps) > 0
    # The target drafts for itself: all that is drafted stands.
    assert sum(step.num_draft_tokens for step in steps) == sum(step.num_accepted_tokens for step in steps)


@pytest.mark.parametrize(
    ("name", "options", "engine"),
    [
        ("ngram", {"num_draft_tokens": 4}, {}),
        ("draft_model", {"num_draft_tokens": 3}, {}),
        # Preemptions and parts of prompts beside verifications.
        ("draft_model", {"num_draft_tokens": 1}, {"num_blocks": 8, "block_size": 2, "max_num_batched_tokens": 4}),
        ("early_exit", {"num_draft_tokens": 2, "exit_layer": 1}, {}),
        ("ngram", {"num_draft_tokens": 2}, {"batch_invariant": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()) or "plain",
)
def test_drafts_that_are_points_change_no_draw(
    folder: Path, draft_folder: Path, name: str, options: dict[str, Any], engine: dict[str, Any]
) -> None:
    if name == "draft_model":
        options = {"path": str(draft_folder), **options}
    wanted, _ = _run(_make_llm(folder, kernels="torch"), KINDS)
    llm = _make_llm(folder, _named(name, sample_drafts=False, **options), **engine)
    got, steps = _run(llm, KINDS)
    assert got == wanted
    assert sum(step.num_draft_tokens for step in steps) > 0
    assert (llm.engine.scheduler.num_preemptions > 0) == ("num_blocks" in engine)


@pytest.mark.parametrize(("name", "options"), [("draft_model", {}), ("early_exit", {"exit_layer": 1})])
def test_drawn_drafts_and_what_becomes_of_them_are_the_other_runners(
    folder: Path, name: str, options: dict[str, Any]
) -> None:
    if name == "draft_model":
        options = {"path": str(folder), **options}
    speculation = _named(name, num_draft_tokens=2, **options)
    params = [KINDS[0], KINDS[2], _greedy(4, repetition_penalty=1.3)]
    wanted, their_steps = _run(_make_llm(folder, speculation, kernels="torch"), params)
    got, our_steps = _run(_make_llm(folder, speculation), params)
    assert got == wanted
    counts = [
        [(step.num_draft_tokens, step.num_accepted_tokens) for step in steps] for steps in (our_steps, their_steps)
    ]
    assert counts[0] == counts[1] and sum(accepted for _, accepted in counts[0]) > 0


def test_made_up_verdicts_are_those_of_the_other_runner(folder: Path) -> None:
    speculation = _named("synthetic", num_draft_tokens=3, acceptance=0.6)
    wanted, _ = _run(_make_llm(folder, speculation, kernels="torch"), _greedy())
    assert _run(_make_llm(folder, speculation), _greedy())[0] == wanted


def test_a_second_request_takes_over_prefixes_that_were_drafted(folder: Path) -> None:
    llm = _make_llm(folder, _named("draft_model", path=str(folder), num_draft_tokens=2))
    first, _ = _run(llm, _greedy(), PROMPTS[:1])
    output = llm.generate({"prompt_token_ids": PROMPTS[0] + list(first[0])}, _greedy(2))[0]
    wanted, _ = _run(_make_llm(folder, kernels="torch"), _greedy(7), PROMPTS[:1])
    assert output.num_cached_tokens == 8 and output.outputs[0].token_ids == wanted[0][5:]


def test_logprobs_come_with_every_token_that_stands(folder: Path) -> None:
    params = [_greedy(4, logprobs=2), _greedy(4, logprobs=0)]
    prompts = [{"prompt_token_ids": p} for p in PROMPTS[:2]]
    ours = _make_llm(folder, _named("draft_model", path=str(folder))).generate(prompts, params)
    theirs = _make_llm(folder, kernels="torch").generate(prompts, params)
    for mine, other in zip(ours, theirs, strict=True):
        a, b = mine.outputs[0].logprobs, other.outputs[0].logprobs
        for at, wanted in zip(a, b, strict=True):
            assert at == pytest.approx(wanted, abs=1e-4)


def test_logits_that_are_no_numbers_end_their_request_and_leave_numbers_behind(folder: Path) -> None:
    llm = _make_llm(folder, _named("ngram", num_draft_tokens=2))
    runner = llm.engine.runner
    with torch.no_grad():
        runner.model.lm_head.weight.fill_(float("nan"))
    runner.parts.kv_cache.fill_(float("nan"))
    got, _ = _run(llm, _greedy(), PROMPTS[:1])
    assert "NaN or infinite" in got[0]
    assert torch.isfinite(runner.parts.kv_cache).flatten(2).all(dim=2).all(dim=0).sum() == 2


def test_drafting_and_verifying_are_timed(folder: Path) -> None:
    _, steps = _run(_make_llm(folder, _named("synthetic", num_draft_tokens=1)), _greedy(3), PROMPTS[:1])
    assert [step.draft_s is None for step in steps] == [step.num_verifications == 0 for step in steps]
    assert all(step.verify_s > step.draft_s > 0 for step in steps if step.draft_s is not None)
