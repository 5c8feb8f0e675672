from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minivllm.sampling.batch import SamplingBatch, SamplingRow
from minivllm.sampling.filters import keep_min_p_, keep_top_k_, keep_top_p_
from minivllm.sampling.sampler import draw_weights_, penalized_scores
from minivllm.sampling_params import SamplingParams

# Odd shapes on purpose; 300 is beyond the head in which the end of a top-p set is first looked for.
_VOCABS = st.sampled_from([1, 2, 3, 7, 31, 64, 257, 300])


@st.composite
def _logits(draw: st.DrawFn, rows: int = 1) -> Tensor:
    """[rows, V] float64 on float32 values, some with ties, some with masked tokens (never all of a row)."""
    vocab_size = draw(_VOCABS)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(rows, vocab_size, generator=generator) * draw(st.sampled_from([0.1, 1.0, 6.0]))
    if draw(st.booleans()):
        logits = (logits * 2).round() / 2
    if draw(st.booleans()):
        masked = torch.rand(rows, vocab_size, generator=generator) < 0.5
        masked[:, draw(st.integers(0, vocab_size - 1))] = False
        logits = logits.masked_fill(masked, -torch.inf)
    return logits.double()


def _make_params(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        temperature=draw(st.sampled_from([0.3, 0.7, 1.0, 1.9])),
        top_k=draw(st.sampled_from([-1, 0, 1, 2, 5, 40, 299, 100_000])),
        top_p=draw(st.one_of(st.just(1.0), st.floats(0.01, 0.999))),
        min_p=draw(st.one_of(st.just(0.0), st.floats(0.001, 1.0))),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.6])),
    )


def _theirs(params: SamplingParams) -> LogitsProcessorList:
    """The processors that transformers' `generate` makes for these parameters, in its order."""
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature != 1:
        processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k > 0:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        processors.append(MinPLogitsWarper(params.min_p))
    return processors


def _distance_from_limits(scores: Tensor, params: SamplingParams) -> float:
    """How close some token comes to a limit of top-p or min-p: nearer than rounding, either side is right."""
    probabilities = scores.softmax(-1)
    ascending = probabilities.sort(-1).values.cumsum(-1)
    to_top_p = (ascending - (1 - params.top_p)).abs().min() if params.top_p < 1 else torch.tensor(1.0)
    ratios = probabilities / probabilities.amax(-1, keepdim=True)
    to_min_p = (ratios - params.min_p).abs().min() if 0 < params.min_p < 1 else torch.tensor(1.0)
    return min(to_top_p.item(), to_min_p.item())


def _ours(logits: Tensor, rows: list[SamplingRow]) -> Tensor:
    """[M, V] probabilities that the M rows, all sampled and fewer than a group holds, are drawn from."""
    (group,) = SamplingBatch.make(rows, "cpu").groups
    assert group.draws is not None
    scores = penalized_scores(logits, group)
    weights = draw_weights_(scores, scores.amax(-1), group.draws)
    return weights / weights.sum(-1, keepdim=True)


def _make_row(params: SamplingParams, prompt: list[int], output: list[int]) -> SamplingRow:
    return SamplingRow(
        params=params,
        seed=0,
        position=len(prompt) + len(output),
        prompt_token_ids=np.array(prompt, dtype=np.int64),
        output_token_ids=np.array(output, dtype=np.int64),
    )


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_mixed_batches_keep_what_transformers_keeps_with_the_same_probabilities(data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(1, 6))
    logits = data.draw(_logits(num_rows))
    tokens = st.lists(st.integers(0, logits.shape[1] - 1), max_size=9)
    rows, expected = [], []
    for index in range(num_rows):
        params = _make_params(data.draw)
        prompt, output = data.draw(tokens), data.draw(tokens)
        before = _theirs(params)
        limits = LogitsProcessorList(p for p in before if isinstance(p, (TopPLogitsWarper, MinPLogitsWarper)))
        scores = logits[index : index + 1]
        input_ids = torch.tensor([prompt + output], dtype=torch.int64)
        for processor in before:
            if processor in limits:
                assume(_distance_from_limits(scores, params) > 1e-9)
            scores = processor(input_ids, scores)
        rows.append(_make_row(params, prompt, output))
        expected.append(scores.softmax(-1))
    theirs, ours = torch.cat(expected), _ours(logits, rows)
    # Where top-p ends among tied tokens, transformers' choice of them is that of an unstable sort: as many, but which
    # is not said. Every other token must agree.
    least_kept = theirs.masked_fill(theirs == 0, 1).amin(-1, keepdim=True)
    differs = (ours > 0) != (theirs > 0)
    rtol = {"rtol": 1e-9, "atol": 1e-15}
    torch.testing.assert_close((ours + theirs)[differs], least_kept.expand_as(ours)[differs], **rtol)
    torch.testing.assert_close(ours[~differs], theirs[~differs], **rtol)
    assert torch.equal((ours > 0).sum(-1), (theirs > 0).sum(-1))
    if all(len(row.unique()) == len(row) for row in logits):
        assert not differs.any()


@pytest.mark.parametrize("num_tied", [1, 2, 8, 16, 128, 512])
@pytest.mark.parametrize("top_p", [0.125, 0.5, 0.75, 0.99])
def test_top_p_keeps_the_lowest_ids_of_tied_tokens(num_tied: int, top_p: float) -> None:
    # A power of two of level tokens has cumulative sums without rounding: limits are met exactly.
    level = torch.zeros(1, num_tied, dtype=torch.float64)
    theirs = TopPLogitsWarper(top_p)(torch.empty(1, 0, dtype=torch.int64), level).isfinite()
    weights = level.exp()
    keep_top_p_(weights, torch.tensor([top_p], dtype=torch.float64))
    assert weights.sum() == theirs.sum() and weights.argmin() in (0, theirs.sum())


@settings(max_examples=60, deadline=None)
@given(_logits(rows=3), st.lists(st.floats(0.01, 0.999), min_size=3, max_size=3), st.sampled_from([1, 2, 16]))
def test_top_p_does_not_depend_on_where_its_search_starts(logits: Tensor, top_p: list[float], head: int) -> None:
    limits = torch.tensor(top_p, dtype=torch.float64)
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    from_head, sorted_whole = weights.clone(), weights.clone()
    keep_top_p_(from_head, limits, head=head)
    keep_top_p_(sorted_whole, limits, head=logits.shape[1])
    ascending = (weights / weights.sum(-1, keepdim=True)).sort(-1).values.cumsum(-1)
    assume(bool(((ascending - (1 - limits[:, None])).abs() > 1e-9).all()))
    assert torch.equal(from_head, sorted_whole)


def test_top_k_keeps_all_tokens_that_tie_with_the_kth() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]] * 3, dtype=torch.float64)
    keep_top_k_(scores, torch.tensor([2, 4, 99]), 99)
    assert scores.isfinite().sum(-1).tolist() == [4, 4, 6]


@pytest.mark.parametrize("vocab_size", [1, 5, 1000])
def test_the_smallest_top_p_keeps_one_token(vocab_size: int) -> None:
    for logits in (torch.zeros(1, vocab_size), torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(0))):
        weights = (logits - logits.max()).double().exp()
        keep_top_p_(weights, torch.tensor([5e-324], dtype=torch.float64))
        assert (weights > 0).sum() == 1 and weights.max() == 1


def test_min_p_keeps_a_token_at_the_limit() -> None:
    weights = torch.tensor([[0.25, 1.0, 0.2499, 0.5]] * 3, dtype=torch.float64)
    keep_min_p_(weights, torch.tensor([0.25, 1.0, 0.0], dtype=torch.float64))
    assert (weights > 0).sum(-1).tolist() == [3, 1, 4]


def test_the_smallest_temperature_chooses_among_the_best() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, -torch.inf, 2.9999]])
    ours = _ours(logits, [_make_row(SamplingParams(temperature=5e-324), [], [])])
    assert ours.tolist() == [[0, 0.5, 0.5, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_presence_and_frequency_count_the_output_alone(data: st.DataObject) -> None:
    logits = data.draw(_logits(rows=3))
    vocab_size = logits.shape[1]
    tokens = st.lists(st.integers(0, vocab_size - 1), max_size=12)
    penalty = st.sampled_from([0.0, 0.5, -1.5, 2.0])
    rows, expected = [], logits.clone()
    for index in range(3):
        params = SamplingParams(
            repetition_penalty=data.draw(st.sampled_from([1.0, 1.5])),
            presence_penalty=data.draw(penalty),
            frequency_penalty=data.draw(penalty),
        )
        prompt, output = data.draw(tokens), data.draw(tokens)
        rows.append(_make_row(params, prompt, output))
        for token in range(vocab_size):
            score = logits[index, token].item()
            if token in prompt + output:
                score = score / params.repetition_penalty if score > 0 else score * params.repetition_penalty
            for nth in range(output.count(token)):
                score -= params.frequency_penalty + (params.presence_penalty if nth == 0 else 0)
            expected[index, token] = score
    torch.testing.assert_close(_ours(logits, rows), expected.softmax(-1), rtol=1e-9, atol=1e-15)
