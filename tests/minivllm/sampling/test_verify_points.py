"""Drafts that are points (an argmax, a look-up): speculation leaves a request the very tokens that it has without."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from minivllm.sampling.sampler import SamplingBatch, SamplingRow, sample
from minivllm.sampling.verify import Chains, verify
from minivllm.sampling_params import SamplingParams

_VOCAB_SIZE, _NUM_DRAFTS, _PROMPT = 11, 4, np.array([1, 5, 5])
# Logits after each token.
_TARGET = torch.randn(_VOCAB_SIZE, _VOCAB_SIZE, generator=torch.Generator().manual_seed(5)) * 2

_KINDS = [
    SamplingParams(temperature=0.0),
    SamplingParams(),
    SamplingParams(temperature=0.6, top_k=5),
    SamplingParams(temperature=1.7, top_p=0.8),
    SamplingParams(min_p=0.1, logprobs=2),
    SamplingParams(temperature=1.4, top_k=9, top_p=0.95, min_p=0.02, repetition_penalty=1.2),
    SamplingParams(temperature=0.0, repetition_penalty=1.5, frequency_penalty=0.3),
    SamplingParams(presence_penalty=-1.0, logprobs=3),
]


def _id(params: SamplingParams) -> str:
    return "-".join(f"{f.name}={v}" for f in fields(params) if (v := getattr(params, f.name)) != f.default) or "default"


def _make_row(params: SamplingParams, seed: int, output: np.ndarray) -> SamplingRow:
    return SamplingRow(
        params=params,
        seed=seed,
        position=len(_PROMPT) + len(output),
        prompt_token_ids=_PROMPT,
        output_token_ids=output,
    )


def _one_at_a_time(params: SamplingParams, seed: int) -> np.ndarray:
    tokens = _PROMPT
    for _ in range(_NUM_DRAFTS + 1):
        row = _make_row(params, seed, tokens[len(_PROMPT) :])
        token = sample(_TARGET[tokens[-1]][None], SamplingBatch.make([row], "cpu")).token_ids
        tokens = np.append(tokens, token.numpy())
    return tokens[len(_PROMPT) :]


@pytest.mark.parametrize("params", _KINDS, ids=_id)
@pytest.mark.parametrize("num_wrong", [0, 1, 2])
def test_points_leave_every_token_what_it_is_without_drafts(params: SamplingParams, num_wrong: int) -> None:
    for seed in range(8):
        output = _one_at_a_time(params, seed)
        drafts = output[:-1].copy()
        wrong = np.random.default_rng(seed).choice(_NUM_DRAFTS, num_wrong, replace=False)
        drafts[wrong] = (drafts[wrong] + 1) % _VOCAB_SIZE
        rows = [_make_row(params, seed, drafts[:j]) for j in range(_NUM_DRAFTS + 1)]
        verified = verify(
            _TARGET[[_PROMPT[-1], *drafts]],
            SamplingBatch.make(rows, "cpu"),
            Chains(num_drafts=np.array([_NUM_DRAFTS]), token_ids=drafts[None]),
        )
        num_accepted = min(wrong, default=_NUM_DRAFTS)
        assert verified.num_accepted == [num_accepted]
        assert verified.token_ids == [output[: num_accepted + 1].tolist()]
