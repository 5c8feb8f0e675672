"""What an engine is asked, against transformers computing the same from scratch: the draft held against the target."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from experiments.points import ASSETS
from experiments.quality.evaluation import Evaluation, continue_all, evaluate, kl_divergence
from experiments.quality.items import Items, make_items
from experiments.quality.reference import Reference, write
from experiments.quality.rows import quality_columns, quality_rows
from experiments.quality.settings import QualityConfig
from minivllm import LLM, SamplingParams

TARGET, DRAFT = str(ASSETS / "reference-target"), str(ASSETS / "reference-draft")
CONFIG = QualityConfig(
    num_windows=4,
    window_tokens=80,
    num_prompts=3,
    prompt_tokens=20,
    output_tokens=6,
    num_task_items=6,
    task_context_tokens=40,
)


@pytest.fixture(scope="module")
def draft() -> LLM:
    return LLM(DRAFT, num_threads=1, max_num_batched_tokens=50)


@pytest.fixture(scope="module")
def items(draft: LLM) -> Items:
    return make_items(CONFIG, draft.tokenizer)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, items: Items) -> Reference:
    target = LLM(TARGET, num_threads=1)
    hidden: list[torch.Tensor] = []
    found = evaluate(target, items, output_tokens=6, keep_hidden=lambda _, states: hidden.append(states.float()))
    path = tmp_path_factory.mktemp("sweep") / "of" / "target.safetensors"
    write(path, items, found, hidden, "float32")
    assert [file.name for file in path.parent.iterdir()] == ["target.safetensors"]
    return Reference(path, target.config)


@pytest.fixture(scope="module")
def found(draft: LLM, items: Items, reference: Reference) -> Evaluation:
    return evaluate(draft, items, output_tokens=6, reference=reference)


@pytest.fixture(scope="module")
def oracles() -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return {path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (TARGET, DRAFT)}


@torch.no_grad()
def _logprobs(model: Any, items: Items) -> torch.Tensor:
    """[num_windows, N, V] float64."""
    return model(torch.tensor(items.windows)[:, :-1]).logits.double().log_softmax(-1)


@torch.no_grad()
def _greedy(model: Any, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_every_number_of_the_text_is_what_transformers_gives(
    items: Items, found: Evaluation, reference: Reference, oracles: dict[str, Any]
) -> None:
    p, q = _logprobs(oracles[TARGET], items), _logprobs(oracles[DRAFT], items)
    targets = torch.tensor(items.windows)[:, 1:]
    rows = quality_rows(items, found, reference)
    text = [row for row in rows if row["kind"] == "text"]
    right_p, right_q = p.argmax(-1) == targets, q.argmax(-1) == targets
    nll = -q.gather(2, targets[..., None])[..., 0]
    kl = (p.exp() * (p - q)).sum(-1)
    assert [row["num_tokens"] for row in text] == [79] * 4
    assert [row["nll_sum_nats"] for row in text] == pytest.approx(nll.sum(1).tolist(), rel=1e-5)
    assert [row["kl_sum_nats"] for row in text] == pytest.approx(kl.sum(1).tolist(), rel=1e-4)
    assert [row["top1_matches"] for row in text] == (p.argmax(-1) == q.argmax(-1)).sum(1).tolist()
    assert [row["top1_flips"] for row in text] == (right_p != right_q).sum(1).tolist()
    columns = quality_columns(rows, items, reference)
    assert columns["perplexity"] == pytest.approx(float(nll.mean().exp()), rel=1e-5)
    assert columns["kl_mean_nats"] == pytest.approx(float(kl.mean()), rel=1e-4) and columns["kl_mean_nats"] > 0.1
    assert columns["quality_num_tokens"] == 316
    assert 0 < columns["top1_flip_fraction"] < 1 - columns["top1_agreement_fraction"] < 1


def test_generation_is_greedy_and_is_held_against_the_references_own(
    items: Items, found: Evaluation, reference: Reference, oracles: dict[str, Any]
) -> None:
    ours = [_greedy(oracles[DRAFT], prompt, 6) for prompt in items.prompts]
    theirs = [_greedy(oracles[TARGET], prompt, 6) for prompt in items.prompts]
    assert [list(tokens) for tokens in found.generated] == ours
    assert [list(tokens) for tokens in reference.generated] == theirs
    rows = [row for row in quality_rows(items, found, reference) if row["kind"] == "generation"]
    assert [row["token_matches"] for row in rows] == [
        sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(ours, theirs, strict=True)
    ]


def test_answers_are_the_identifiers_that_greedy_text_leads_with(
    draft: LLM, items: Items, found: Evaluation, oracles: dict[str, Any]
) -> None:
    for item, answer in zip(items.tasks, found.answers, strict=True):
        text = draft.tokenizer.decode(_greedy(oracles[DRAFT], item.context, 12)).strip(" ")
        assert text.startswith(answer) and not (text[len(answer) :][:1] or " ").isidentifier()


def test_the_model_itself_comes_to_no_divergence_without_being_told(items: Items, reference: Reference) -> None:
    again = evaluate(LLM(TARGET, num_threads=1, block_size=4), items, output_tokens=6, reference=reference)
    columns = quality_columns(quality_rows(items, again, reference), items, reference)
    assert 0 <= columns["kl_mean_nats"] < 1e-9
    exact = {"top1_agreement_fraction": 1, "top1_flip_fraction": 0, "task_flip_fraction": 0}
    assert {key: columns[key] for key in exact} == exact
    assert columns["token_agreement_fraction"] == 1 and columns["first_divergence_mean_tokens"] == 6


def test_without_a_reference_there_are_perplexity_and_task_alone(draft: LLM, items: Items, found: Evaluation) -> None:
    alone = evaluate(draft, items, output_tokens=6, generate=False)
    rows = quality_rows(items, alone, None)
    assert {row["kind"] for row in rows} == {"text", "task"} and "kl_sum_nats" not in rows[0]
    columns = quality_columns(rows, items, None)
    assert set(columns) == {"quality_num_tokens", "perplexity", "task_score_fraction"}
    assert alone.answers == found.answers


def test_logits_that_are_no_numbers_are_no_quality(items: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(DRAFT, num_threads=1)
    broken = torch.full((79, 4096), float("nan"))
    monkeypatch.setattr(llm.engine.runner.model, "compute_logits", lambda hidden: broken[: len(hidden)])
    with pytest.raises(RuntimeError, match="^quality: logits of window 0 are NaN or infinite"):
        evaluate(llm, items, output_tokens=6)
    with pytest.raises(RuntimeError, match="^quality: request 0: logits for position 20 are NaN or infinite"):
        continue_all(llm.engine, items.prompts, SamplingParams(temperature=0, max_tokens=2))


def test_a_request_ends_when_enough_was_seen(draft: LLM, items: Items) -> None:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    whole = continue_all(draft.engine, items.prompts, params)
    assert [len(tokens) for tokens in whole] == [6, 6, 6]
    cut = continue_all(draft.engine, items.prompts, params, lambda tokens: len(tokens) == 2)
    assert cut == [tokens[:2] for tokens in whole]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 300.0]), size=st.integers(2, 40))
def test_divergence_is_that_of_double_precision_and_never_below_zero(seed: int, scale: float, size: int) -> None:
    generator = np.random.default_rng(seed)
    p = torch.from_numpy(generator.normal(0, 5, (3, size))).log_softmax(-1)
    q = (p + torch.from_numpy(generator.normal(0, 1, (3, size))) * scale).log_softmax(-1)
    wanted = (p.exp() * (p - q)).sum(-1)
    got = kl_divergence(p.float(), q.float())
    assert (got >= 0).all()
    torch.testing.assert_close(got.double(), wanted, rtol=2e-3, atol=1e-6)


def test_a_certainty_that_was_misplaced_is_a_large_divergence_and_a_number() -> None:
    p, q = torch.tensor([[0.0, -400.0]]), torch.tensor([[-400.0, 0.0]])
    assert kl_divergence(p, q).tolist() == pytest.approx([399.0])
