"""Speculation draws what the target draws: the first three tokens of many requests, against their exact probabilities.

Target and drafter are tables of logits that depend on the token before, so a request is a few look-ups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from unittest import mock

import numpy as np
import pytest
import torch
from chi_square import joint_p_value, joint_probabilities, level, token_probabilities
from scipy import stats
from torch import Tensor

from minivllm.sampling import batch, drafts
from minivllm.sampling import verify as module
from minivllm.sampling.drafts import DraftBatch
from minivllm.sampling.random import Stream, uniforms
from minivllm.sampling.sampler import SamplingBatch, SamplingRow
from minivllm.sampling.verify import Chains, VerifyOutput, verify
from minivllm.sampling_params import SamplingParams

Verify = Callable[[Tensor, SamplingBatch, Chains], VerifyOutput]

_VOCAB_SIZE, _NUM_TOKENS, _NUM_REQUESTS = 8, 3, 20_000
_PROMPT = (1, 4, 4, 6)
_GENERATOR = torch.Generator().manual_seed(3)
_TARGET = torch.randn(_VOCAB_SIZE, _VOCAB_SIZE, generator=_GENERATOR) * 1.5
# Right often enough that whole chains are accepted, wrong often enough that every draft may be rejected.
_DRAFTER = _TARGET * 0.7 + torch.randn(_VOCAB_SIZE, _VOCAB_SIZE, generator=_GENERATOR) * 0.8

_CASES = [
    (SamplingParams(temperature=0.7, top_p=0.8), 1),
    (SamplingParams(temperature=1.3), 3),
    (SamplingParams(temperature=1.3, top_k=4), 4),
    (SamplingParams(temperature=0.7, min_p=0.1), 1),
    (SamplingParams(temperature=0.7, repetition_penalty=1.6, presence_penalty=0.5, frequency_penalty=-0.7), 2),
    (SamplingParams(temperature=1.3, top_k=6, top_p=0.8, min_p=0.05, repetition_penalty=0.7), 2),
]


def _id(case: object) -> str:
    if not isinstance(case, SamplingParams):
        return f"k={case}"
    return "-".join(f"{f.name}={v}" for f in fields(case) if (v := getattr(case, f.name)) != f.default) or "default"


@pytest.fixture(autouse=True)
def _few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    # Eight tokens fit many rows; a group's cost is its operations.
    monkeypatch.setattr(batch, "MAX_GROUP_ROWS", 4096)
    monkeypatch.setattr(drafts, "MAX_GROUP_ROWS", 4096)


def _speculate(
    params: SamplingParams, num_drafts: int, verify: Verify, num_requests: int = _NUM_REQUESTS
) -> tuple[np.ndarray, float]:
    """The first tokens [N, 3] of requests that differ in their seeds, and what part of their first drafts stood."""
    start = len(_PROMPT)
    prompt = np.array(_PROMPT)
    tokens_NL = np.zeros((num_requests, start + _NUM_TOKENS + num_drafts), dtype=np.int64)
    tokens_NL[:, :start] = prompt
    lengths_N = np.full(num_requests, start)
    share_of_first = None
    while len(going := np.flatnonzero(lengths_N < start + _NUM_TOKENS)):
        requests, lengths = going.tolist(), lengths_N[going].tolist()
        rows = [SamplingRow(params=params, seed=n, position=at) for n, at in zip(requests, lengths, strict=True)]
        drafting = DraftBatch.make(rows, num_drafts, "cpu")
        inputs, weights = [torch.from_numpy(tokens_NL[going, lengths_N[going] - 1])], []
        for step in range(num_drafts):
            drafted = drafting.draw(_DRAFTER[inputs[-1]], step)
            inputs.append(drafted.token_ids)
            weights.append(drafted.weights)
        inputs_RK = torch.stack(inputs, dim=1)
        tokens_NL[going[:, None], lengths_N[going][:, None] + np.arange(num_drafts)] = inputs_RK[:, 1:].numpy()
        wanted = [
            SamplingRow(
                params=params,
                seed=n,
                position=at,
                prompt_token_ids=prompt,
                output_token_ids=tokens_NL[n, start:at],
            )
            for n, first in zip(requests, lengths, strict=True)
            for at in range(first, first + num_drafts + 1)
        ]
        chains = Chains(
            num_drafts=np.full(len(going), num_drafts),
            token_ids=inputs_RK[:, 1:],
            drawn=drafting.drawn,
            weights=torch.stack(weights, dim=1),
        )
        output = verify(_TARGET[inputs_RK.reshape(-1)], SamplingBatch.make(wanted, "cpu"), chains)
        for n, first, token_ids in zip(requests, lengths, output.token_ids, strict=True):
            tokens_NL[n, first : first + len(token_ids)] = token_ids
            lengths_N[n] += len(token_ids)
        if share_of_first is None:
            share_of_first = float(np.mean([accepted > 0 for accepted in output.num_accepted]))
    assert share_of_first is not None
    return tokens_NL[:, start : start + _NUM_TOKENS], share_of_first


def _joint(params: SamplingParams) -> dict[tuple[int, ...], float]:
    def probabilities(before: tuple[int, ...]) -> list[float]:
        newest = (*_PROMPT, *before)[-1]
        return token_probabilities(_TARGET[newest].tolist(), params, _PROMPT, before)

    return joint_probabilities(_NUM_TOKENS, probabilities)


def _acceptance(params: SamplingParams) -> float:
    """How likely the first draft is to stand: what target and drafter have in common."""
    p = token_probabilities(_TARGET[_PROMPT[-1]].tolist(), params, _PROMPT)
    bare = replace(params, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
    q = token_probabilities(_DRAFTER[_PROMPT[-1]].tolist(), bare)
    return sum(map(min, p, q))


@pytest.mark.parametrize("params,num_drafts", _CASES, ids=_id)
def test_drawn_drafts_leave_the_distribution_alone(params: SamplingParams, num_drafts: int) -> None:
    sequences, share_of_first = _speculate(params, num_drafts, verify)
    assert joint_p_value(sequences, _joint(params)) > level(len(_CASES))
    # And no more drafts are rejected than that takes.
    acceptance = _acceptance(params)
    assert 0.2 < acceptance < 0.9
    num_first = round(share_of_first * _NUM_REQUESTS)
    assert stats.binomtest(num_first, _NUM_REQUESTS, acceptance).pvalue > level(len(_CASES))


def _without_the_ratio(p_SV: Tensor, q_SV: Tensor, scale_S: Tensor, token_S: Tensor, uniforms_S: Tensor) -> Tensor:
    return p_SV.gather(-1, token_S[:, None]).squeeze(-1) > 0


def _shared(stream: Stream, instead_of: Stream) -> Callable[..., np.ndarray]:
    return lambda seeds, positions, asked: uniforms(seeds, positions, np.where(asked == instead_of, stream, asked))


def _broken(name: str, part: object) -> Verify:
    def broken(logits_MV: Tensor, batch: SamplingBatch, chains: Chains) -> VerifyOutput:
        with mock.patch.object(module, name, part):
            return verify(logits_MV, batch, chains)

    return broken


def _bonus_from_q(logits_MV: Tensor, batch: SamplingBatch, chains: Chains) -> VerifyOutput:
    output = verify(logits_MV, batch, chains)
    cumulative = [np.cumsum(token_probabilities(row, batch.rows[0].params)) for row in _DRAFTER.tolist()]
    # Each request's last row is that of the bonus.
    last_rows = [batch.rows[row] for row in np.cumsum(chains.num_drafts + 1) - 1]
    uniforms_R = uniforms([row.seed for row in last_rows], [row.position for row in last_rows])
    for request, token_ids in enumerate(output.token_ids):
        if output.num_accepted[request] == chains.num_drafts[request]:
            token_ids[-1] = int(np.searchsorted(cumulative[token_ids[-2]], uniforms_R[request], side="right"))
    return output


def _weights_of_another_temperature(logits_MV: Tensor, batch: SamplingBatch, chains: Chains) -> VerifyOutput:
    assert chains.weights is not None
    return verify(logits_MV, batch, replace(chains, weights=chains.weights**1.3))


_BROKEN = {
    "accepted without the ratio": _broken("accepts", _without_the_ratio),
    "replaced from p": _broken("residual_", lambda p_SV, q_SV, scale_S: p_SV),
    "one uniform accepts and replaces": _broken("uniforms", _shared(Stream.ACCEPT, instead_of=Stream.RESIDUAL)),
    "one uniform drafts and accepts": _broken("uniforms", _shared(Stream.DRAFT, instead_of=Stream.ACCEPT)),
    "bonus from q": _bonus_from_q,
    "weights of another temperature": _weights_of_another_temperature,
}


@pytest.mark.parametrize("broken", _BROKEN.values(), ids=_BROKEN)
def test_verification_that_is_slightly_wrong_is_found_out(broken: Verify) -> None:
    params, num_drafts = SamplingParams(temperature=1.3), 1
    # With fewer draws than the sound one has to pass with.
    sequences, _ = _speculate(params, num_drafts, broken, _NUM_REQUESTS // 2)
    assert joint_p_value(sequences, _joint(params)) < level(len(_CASES)) / 1e3
