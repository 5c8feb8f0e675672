from __future__ import annotations

import numpy as np
import pytest
import torch
from chi_square import level, p_value, token_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minivllm.sampling.batch import MAX_GROUP_ROWS
from minivllm.sampling.drafts import DraftBatch
from minivllm.sampling.random import Stream, uniforms
from minivllm.sampling.sampler import SamplingRow, invert
from minivllm.sampling_params import SamplingParams

_GREEDY = SamplingParams(temperature=0.0)
_KINDS = [
    SamplingParams(),
    _GREEDY,
    SamplingParams(temperature=0.6, top_k=5),
    SamplingParams(top_p=0.8),
    SamplingParams(temperature=0.0, repetition_penalty=1.3, logprobs=2),
    SamplingParams(temperature=1.4, top_k=9, top_p=0.95, min_p=0.02),
    SamplingParams(min_p=0.1, logprobs=3),
]


def _make_logits(num_rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2


def _make_rows(num_rows: int) -> list[SamplingRow]:
    return [SamplingRow(params=_KINDS[i % len(_KINDS)], seed=3 * i - 9, position=5 + i % 4) for i in range(num_rows)]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 2, 13, MAX_GROUP_ROWS, 2 * MAX_GROUP_ROWS + 9]), st.integers(1, 4), st.integers(0, 99))
def test_drafts_come_from_their_weights_at_their_position(num_rows: int, num_drafts: int, seed: int) -> None:
    rows = _make_rows(num_rows)
    batch = DraftBatch.make(rows, num_drafts, "cpu")
    assert batch.drawn.tolist() == [i for i, row in enumerate(rows) if not row.params.greedy]
    for step in range(num_drafts):
        logits = _make_logits(num_rows, 17, seed + step)
        before = logits.clone()
        output = batch.draw(logits, step)
        assert torch.equal(before, logits)
        assert output.weights is not None and output.weights.shape == (len(batch.drawn), 17)
        assert output.weights.dtype == torch.float64
        for i, row in enumerate(rows):
            if row.params.greedy:
                # Penalties are left to verification.
                assert output.token_ids[i] == logits[i].argmax()
                continue
            weights = output.weights[batch.drawn.tolist().index(i)]
            exact = torch.tensor(token_probabilities(logits[i].tolist(), row.params), dtype=torch.float64)
            torch.testing.assert_close(weights / weights.sum(), exact, rtol=1e-12, atol=0)
            uniform = torch.from_numpy(uniforms([row.seed], [row.position + step], Stream.DRAFT))
            assert output.token_ids[i] == invert(exact[None], uniform)


@pytest.mark.parametrize("points", [True, False])
def test_points_are_what_is_likeliest(points: bool) -> None:
    rows = [row for row in _make_rows(21) if points or row.params.greedy]
    batch = DraftBatch.make(rows, 2, "cpu", points=points)
    logits = _make_logits(len(rows), 17)
    output = batch.draw(logits, 1)
    assert output.token_ids.tolist() == logits.argmax(-1).tolist()
    assert output.weights is None and batch.drawn.tolist() == [] and batch.drawn.dtype == np.int64


def test_penalties_are_left_to_verification() -> None:
    penalized = SamplingParams(repetition_penalty=1.9, presence_penalty=2.0, frequency_penalty=2.0)
    logits = _make_logits(1, 17)
    drawn = [
        DraftBatch.make([SamplingRow(params=params, seed=4, position=9)], 1, "cpu").draw(logits, 0)
        for params in (penalized, SamplingParams())
    ]
    assert drawn[0].weights is not None and drawn[1].weights is not None
    assert torch.equal(drawn[0].weights, drawn[1].weights) and torch.equal(drawn[0].token_ids, drawn[1].token_ids)


def test_drafts_follow_their_distribution_in_every_step() -> None:
    params = SamplingParams(temperature=1.2, top_p=0.9)
    rows = [SamplingRow(params=params, seed=seed, position=3) for seed in range(8_000)]
    logits = _make_logits(1, 17).expand(8_000, -1)
    batch = DraftBatch.make(rows, 3, "cpu")
    drawn = torch.stack([batch.draw(logits, step).token_ids for step in range(3)])
    exact = token_probabilities(logits[0].tolist(), params)
    for of_step in drawn.numpy():
        assert p_value(np.bincount(of_step, minlength=17), exact) > level(4)
    # Two steps of one request have nothing to do with each other.
    pairs = np.bincount(drawn[0].numpy() * 17 + drawn[1].numpy(), minlength=17 * 17)
    assert p_value(pairs, np.outer(exact, exact).reshape(-1)) > level(4)
