"""Draws against the exact distribution. Seeds are fixed, so these tests either always pass or always fail."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from chi_square import p_value, token_probabilities

from minivllm.sampling import batch, sampler
from minivllm.sampling.sampler import SamplingBatch, SamplingRow, sample
from minivllm.sampling_params import SamplingParams

_NUM_DRAWS = 20_000
_PROMPT, _OUTPUT = [1, 4, 4, 9], [2, 4, 2, 2, 30]
_LOGITS = np.random.default_rng(11).normal(size=41).astype(np.float32) * 2
_LOGITS[[7, 8, 40]] = _LOGITS[5]
_LOGITS[13] = -np.inf

_PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=1.7, top_k=7),
    SamplingParams(top_p=0.8),
    SamplingParams(min_p=0.15),
    SamplingParams(repetition_penalty=1.6, presence_penalty=0.4, frequency_penalty=0.7),
    SamplingParams(temperature=1.3, top_k=20, top_p=0.9, min_p=0.03, repetition_penalty=0.8),
]


def _id(params: SamplingParams) -> str:
    return "-".join(f"{f.name}={v}" for f in fields(params) if (v := getattr(params, f.name)) != f.default) or "default"


def _exact(params: SamplingParams) -> list[float]:
    return token_probabilities(_LOGITS.tolist(), params, _PROMPT, _OUTPUT)


def _count_draws(params: SamplingParams, *, vary: str, num_draws: int = _NUM_DRAWS) -> np.ndarray:
    prompt, output = np.array(_PROMPT), np.array(_OUTPUT)
    rows = []
    for i in range(num_draws):
        seed, position = {"seed": (i, 9), "position": (-3, i), "both": (i // 100, i % 100)}[vary]
        rows.append(
            SamplingRow(params=params, seed=seed, position=position, prompt_token_ids=prompt, output_token_ids=output)
        )
    logits = torch.from_numpy(_LOGITS).expand(num_draws, -1)
    token_ids = sample(logits, SamplingBatch.make(rows, "cpu")).token_ids
    return np.bincount(token_ids.numpy(), minlength=len(_LOGITS))


@pytest.mark.parametrize("params", _PARAMS, ids=_id)
def test_draws_follow_the_exact_distribution(params: SamplingParams) -> None:
    vary = ("seed", "position", "both")[_PARAMS.index(params) % 3]
    assert p_value(_count_draws(params, vary=vary), _exact(params)) > 1e-4


@pytest.mark.parametrize("filter_", ["keep_top_k_", "keep_top_p_", "keep_min_p_"])
def test_a_sampler_that_ignores_a_filter_is_found_out(filter_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {
        "keep_top_k_": SamplingParams(top_k=36),
        "keep_top_p_": SamplingParams(top_p=0.99),
        "keep_min_p_": SamplingParams(min_p=0.001),
    }[filter_]
    assert p_value(_count_draws(params, vary="both"), _exact(params)) > 1e-4
    monkeypatch.setattr(sampler, filter_, lambda *_: None)
    assert p_value(_count_draws(params, vary="both"), _exact(params)) < 1e-4


def test_a_sampler_at_a_slightly_wrong_temperature_is_found_out() -> None:
    wrong = SamplingParams(temperature=1.05)
    assert p_value(_count_draws(wrong, vary="both"), _exact(SamplingParams())) < 1e-4


def test_a_sampler_with_slightly_biased_uniforms_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = batch.uniforms
    monkeypatch.setattr(batch, "uniforms", lambda seeds, positions: sound(seeds, positions) ** 1.1)
    assert p_value(_count_draws(SamplingParams(), vary="both"), _exact(SamplingParams())) < 1e-4
