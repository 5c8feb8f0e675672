"""An engine that speculates draws what its target draws: the first three tokens of 20,000 seeded requests a drafter,
against the exact probabilities of every three tokens, from the logits that transformers gives.

Seeds are fixed: a case either always passes or always fails. A drafter's other manners (points, trees) draw fewer, or
as many as the variable MINIVLLM_DISTRIBUTION_RUNS says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from chi_square import joint_p_value, joint_probabilities, level, token_probabilities
from draft_targets import save_eagle, save_medusa, save_noisy_copy
from tiny import save_tiny_llama

from minivllm import LLM, SamplingParams
from minivllm.config import Component, SpeculationConfig
from minivllm.sampling import batch, drafts
from minivllm.sampling import verify as verification

_VOCAB_SIZE, _MAX_NUM_SEQS = 8, 1000
_NUM_RUNS = 20_000
_NUM_RUNS_OF_OTHERS = int(os.environ.get("MINIVLLM_DISTRIBUTION_RUNS", "4000"))
# Eight cached tokens, and one whose successor is the first draft.
_PROMPT = (1, 4, 4, 6, 3, 5, 4, 6, 1)
_NUM_PLANTED_RUNS = 4000


@dataclass(frozen=True, kw_only=True)
class Case:
    """Who drafts, in which manner, for which draws."""

    drafter: str
    sample_drafts: bool = True
    kwargs: dict[str, Any] = field(default_factory=dict)
    # Folder of the drafter's weights.
    weights: str | None = None
    num_draft_tokens: int = 2
    temperature: float = 0.9
    top_p: float = 0.85

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature, top_p=self.top_p, max_tokens=1 + self.num_draft_tokens, ignore_eos=True
        )


_CASES = {
    "draft_model-drawn": Case(drafter="draft_model.DraftModel", weights="noisy"),
    "draft_model-drawn-k3": Case(
        drafter="draft_model.DraftModel", weights="other", num_draft_tokens=3, temperature=1.2, top_p=0.9
    ),
    "draft_model-points": Case(drafter="draft_model.DraftModel", weights="noisy", sample_drafts=False),
    "early_exit-drawn": Case(drafter="early_exit.EarlyExit", kwargs={"exit_layer": 1}, top_p=0.9),
    "early_exit-points": Case(drafter="early_exit.EarlyExit", kwargs={"exit_layer": 1}, sample_drafts=False),
    "medusa-drawn": Case(drafter="medusa.Medusa", weights="medusa", temperature=1.3, top_p=0.9),
    "medusa-tree": Case(
        drafter="medusa.Medusa", weights="medusa", kwargs={"tree": [2, 2]}, num_draft_tokens=6, top_p=0.9
    ),
    "eagle-drawn": Case(drafter="eagle.Eagle", weights="eagle", temperature=1.3, top_p=0.9),
    "eagle-tree": Case(drafter="eagle.Eagle", weights="eagle", kwargs={"tree": [2, 2]}, num_draft_tokens=6, top_p=0.9),
    "ngram": Case(drafter="ngram.Ngram"),
}
_ONE_OF_EACH = ("draft_model-drawn", "early_exit-drawn", "medusa-drawn", "eagle-drawn", "ngram")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distribution")
    shape = {
        "vocab_size": _VOCAB_SIZE,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "initializer_range": 0.4,
        "max_position_embeddings": 32,
    }
    target = save_tiny_llama(path / "target", **shape)
    save_tiny_llama(path / "other", seed=1, **{**shape, "num_hidden_layers": 1})
    save_noisy_copy(path / "noisy", target, 0.3)
    save_medusa(path / "medusa", target)
    save_eagle(path / "eagle", target)
    return path


@pytest.fixture(scope="module")
def logits(folder: Path) -> dict[tuple[int, ...], list[float]]:
    """Of the next token, after the prompt and none, one or two tokens more."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.float32)
    pairs = list(product(range(_VOCAB_SIZE), repeat=2))
    with torch.no_grad():
        rows = model(torch.tensor([[*_PROMPT, *pair] for pair in pairs])).logits[:, len(_PROMPT) - 1 :].tolist()
    return {pair[:count]: row[count] for pair, row in zip(pairs, rows, strict=True) for count in (0, 1, 2)}


@pytest.fixture(autouse=True)
def _few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    # Eight tokens fit many rows; a group's cost is its operations.
    monkeypatch.setattr(batch, "MAX_GROUP_ROWS", 8192)
    monkeypatch.setattr(drafts, "MAX_GROUP_ROWS", 8192)


def _make_llm(folder: Path, case: Case) -> LLM:
    kwargs = dict(case.kwargs)
    if case.weights is not None:
        kwargs["path"] = str(folder / case.weights)
    return LLM(
        str(folder / "target"),
        block_size=8,
        num_blocks=2 * _MAX_NUM_SEQS + 8,
        max_num_seqs=_MAX_NUM_SEQS,
        max_num_batched_tokens=(1 + case.num_draft_tokens) * _MAX_NUM_SEQS,
        speculation=SpeculationConfig(
            drafter=Component(target=f"minivllm.speculation.{case.drafter}", kwargs=kwargs),
            num_draft_tokens=case.num_draft_tokens,
            sample_drafts=case.sample_drafts,
        ),
    )


def _draw(llm: LLM, params: SamplingParams, num_runs: int) -> tuple[list[tuple[int, ...]], float]:
    """The first three tokens of requests that differ in their seeds, and the share of drafts that were accepted."""
    engine = llm.engine
    # The first one leaves the prompt in the cache.
    llm.generate({"prompt_token_ids": list(_PROMPT)}, params)
    drawn, num_drafts, num_accepted = [], 0, 0
    for first in range(0, num_runs, _MAX_NUM_SEQS):
        for seed in range(first, min(first + _MAX_NUM_SEQS, num_runs)):
            engine.add_request(list(_PROMPT), replace(params, seed=seed))
        while engine.has_unfinished:
            report = engine.step()
            num_drafts += report.num_draft_tokens
            num_accepted += report.num_accepted_tokens
        drawn += [tuple(request.output_token_ids[:3]) for request in engine.take_finished()]
    assert len(drawn) == num_runs
    return drawn, num_accepted / num_drafts


def _p_value(folder: Path, logits, case: Case, num_runs: int) -> tuple[float, float]:
    joint = joint_probabilities(3, lambda before: token_probabilities(logits[before], case.params))
    drawn, share = _draw(_make_llm(folder, case), case.params, num_runs)
    return joint_p_value(drawn, joint), share


def _check(folder: Path, logits, name: str, num_runs: int) -> None:
    p_value, share = _p_value(folder, logits, _CASES[name], num_runs)
    print(f"{name}: p = {p_value:.3g} of {num_runs} runs, {share:.2f} of the drafts accepted")
    assert p_value > level(len(_CASES))
    assert 0.05 < share < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", _ONE_OF_EACH)
def test_the_first_three_tokens_of_20000_runs_follow_their_exact_distribution(folder: Path, logits, name: str) -> None:
    _check(folder, logits, name, _NUM_RUNS)


@pytest.mark.parametrize("name", [name for name in _CASES if name not in _ONE_OF_EACH])
def test_the_first_three_tokens_follow_their_exact_distribution(folder: Path, logits, name: str) -> None:
    _check(folder, logits, name, _NUM_RUNS_OF_OTHERS)


def _accept_all(p_SV, q_SV, scale_S, token_S, uniforms_S):
    return torch.ones_like(token_S, dtype=torch.bool)


def _replace_from_the_target(p_SV, q_SV, scale_S):
    return p_SV


@pytest.mark.parametrize(
    ("rule", "bug"),
    [("accepts", _accept_all), ("residual_", _replace_from_the_target)],
    ids=["without-the-ratio", "without-the-residual"],
)
@pytest.mark.parametrize("case", ["draft_model-drawn", "early_exit-drawn"])
def test_a_planted_bug_is_found_out(folder: Path, logits, monkeypatch, case: str, rule: str, bug) -> None:
    monkeypatch.setattr(verification, rule, bug)
    p_value, _ = _p_value(folder, logits, _CASES[case], _NUM_PLANTED_RUNS)
    assert p_value < level(len(_CASES))
