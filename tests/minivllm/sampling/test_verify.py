from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from chi_square import token_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minivllm.sampling.batch import MAX_GROUP_ROWS
from minivllm.sampling.drafts import DraftBatch
from minivllm.sampling.random import Stream, uniforms
from minivllm.sampling.sampler import SamplingBatch, SamplingRow, sample
from minivllm.sampling.verify import Chains, VerifyOutput, accept_chains, sample_chains, verify
from minivllm.sampling_params import SamplingParams

_GREEDY = SamplingParams(temperature=0.0)

# One of each kind of request.
_KINDS = [
    _GREEDY,
    SamplingParams(),
    SamplingParams(temperature=0.6, top_k=5),
    SamplingParams(top_p=0.8),
    SamplingParams(min_p=0.1, logprobs=2),
    SamplingParams(temperature=1.4, top_k=9, top_p=0.95, min_p=0.02, repetition_penalty=1.2),
    SamplingParams(temperature=0.0, repetition_penalty=1.5, frequency_penalty=0.3),
    SamplingParams(presence_penalty=-1.0, logprobs=3),
    SamplingParams(temperature=0.0, logprobs=0),
]


def _id(params: SamplingParams) -> str:
    return "-".join(f"{f.name}={v}" for f in fields(params) if (v := getattr(params, f.name)) != f.default) or "default"


class _Request:
    """One request of a step: its drafts, and the target's logits after its newest token and each of them."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        seed: int,
        num_drafts: int,
        vocab_size: int,
        points: bool = False,
        likeness: float = 0.6,
        masked: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.params, self.seed, self.num_drafts = params, seed, num_drafts
        self.is_drawn = not points and not params.greedy
        self.logits = torch.randn(num_drafts + 1, vocab_size, generator=generator) * 2
        noise = torch.randn(num_drafts, vocab_size, generator=generator) * 2
        self.drafter_logits = self.logits[:-1] * likeness + noise * (1 - likeness)
        if masked:
            self.logits[:, torch.randperm(vocab_size, generator=generator)[: vocab_size // 2]] = -torch.inf
            self.drafter_logits[:, torch.randperm(vocab_size, generator=generator)[: vocab_size // 2]] = -torch.inf
        self.prompt = torch.randint(vocab_size, (5,), generator=generator).tolist()
        self.output = torch.randint(vocab_size, (1 + seed % 3,), generator=generator).tolist()
        self.drafting = DraftBatch.make([self.row(0)], num_drafts, "cpu", points=points) if num_drafts else None
        drafted = [self.drafting.draw(self.drafter_logits[j : j + 1], j) for j in range(num_drafts) if self.drafting]
        self.drafts = [int(one.token_ids) for one in drafted]
        # [num_drafts, V]
        self.weights = torch.cat([one.weights for one in drafted]) if self.is_drawn and drafted else None

    @property
    def position(self) -> int:
        return len(self.prompt) + len(self.output)

    def row(self, j: int) -> SamplingRow:
        return SamplingRow(
            params=self.params,
            seed=self.seed,
            position=self.position + j,
            prompt_token_ids=np.array(self.prompt),
            output_token_ids=np.array(self.output + (self.drafts[:j] if j else [])),
        )


def _make_inputs(requests: Sequence[_Request], *, on_host: bool = True) -> tuple[Tensor, SamplingBatch, Chains]:
    width, vocab_size = max(request.num_drafts for request in requests) + 1, requests[0].logits.shape[1]
    # What lies beyond a request's drafts must not matter.
    token_ids = np.full((len(requests), width), -7, dtype=np.int64)
    drawn = [i for i, request in enumerate(requests) if request.weights is not None]
    weights = torch.full((len(drawn), width, vocab_size), torch.nan, dtype=torch.float64)
    for i, request in enumerate(requests):
        token_ids[i, : request.num_drafts] = request.drafts
        if request.weights is not None:
            weights[drawn.index(i), : request.num_drafts] = request.weights
    chains = Chains(
        num_drafts=np.array([request.num_drafts for request in requests]),
        token_ids=token_ids if on_host else torch.from_numpy(token_ids),
        drawn=np.array(drawn, dtype=np.int64),
        weights=weights if drawn else None,
    )
    rows = [request.row(j) for request in requests for j in range(request.num_drafts + 1)]
    return torch.cat([request.logits for request in requests]), SamplingBatch.make(rows, "cpu"), chains


def _verify(requests: Sequence[_Request], *, on_host: bool = True) -> VerifyOutput:
    return verify(*_make_inputs(requests, on_host=on_host))


def _inverse(weights: Sequence[float], uniform: float) -> int:
    sums = list(accumulate(weights))
    return bisect_right(sums, uniform * sums[-1])


def _reference(request: _Request) -> tuple[list[int], list[int]]:
    """Leviathan's rule (arXiv 2211.17192, algorithm 1) for one request in plain Python: its drafts, its tokens."""
    bare = replace(request.params, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)

    def uniform(j: int, stream: Stream) -> float:
        return float(uniforms([request.seed], [request.position + j], stream)[0])

    def p(j: int) -> list[float]:
        logits = request.logits[j].tolist()
        return token_probabilities(logits, request.params, request.prompt, request.output + proposed[:j])

    proposed: list[int] = []
    q = [token_probabilities(request.drafter_logits[j].tolist(), bare) for j in range(request.num_drafts)]
    for j in range(request.num_drafts):
        likeliest = int(request.drafter_logits[j].argmax())
        proposed.append(_inverse(q[j], uniform(j, Stream.DRAFT)) if request.is_drawn else likeliest)
    tokens: list[int] = []
    for j, draft in enumerate(proposed):
        if not request.is_drawn:
            tokens.append(_inverse(p(j), uniform(j, Stream.TOKEN)))
        elif uniform(j, Stream.ACCEPT) < p(j)[draft] / q[j][draft]:
            tokens.append(draft)
        else:
            left = [max(0.0, a - b) for a, b in zip(p(j), q[j], strict=True)]
            tokens.append(_inverse(left, uniform(j, Stream.RESIDUAL)))
        if tokens[-1] != draft:
            return proposed, tokens
    return proposed, [*tokens, _inverse(p(len(proposed)), uniform(len(proposed), Stream.TOKEN))]


@st.composite
def _params(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.9])),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 5, 40])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.05, 0.613, 0.947])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.0137, 0.313])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.6])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, -0.4])),
        logprobs=draw(st.sampled_from([None, None, 2])),
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_token_is_that_of_leviathans_rule(data: st.DataObject) -> None:
    vocab_size = data.draw(st.integers(5, 12))
    requests = [
        _Request(
            data.draw(_params()),
            seed=data.draw(st.integers(0, 2**32)),
            num_drafts=data.draw(st.integers(0, 4)),
            vocab_size=vocab_size,
            points=data.draw(st.booleans()),
            likeness=data.draw(st.sampled_from([0.0, 0.7, 0.95])),
            masked=data.draw(st.booleans()),
        )
        for _ in range(data.draw(st.integers(1, 6)))
    ]
    output = _verify(requests, on_host=data.draw(st.booleans()))
    for i, request in enumerate(requests):
        drafts, tokens = _reference(request)
        assert request.drafts == drafts
        assert output.token_ids[i] == tokens
        assert output.num_accepted[i] == len(tokens) - 1 and output.finite[i] is True


def test_the_differential_sees_every_outcome() -> None:
    requests = [
        _Request(SamplingParams(temperature=1.2, top_k=6), seed=seed, num_drafts=3, vocab_size=9, likeness=0.8)
        for seed in range(60)
    ]
    output = _verify(requests)
    assert set(output.num_accepted) == {0, 1, 2, 3}
    # Some drafts stand that the target itself would not have drawn: not all acceptance is agreement.
    logits, wanted, _ = _make_inputs(requests)
    alone = sample(logits, wanted).token_ids.view(60, 4).tolist()
    assert any(output.token_ids[i][0] == request.drafts[0] != alone[i][0] for i, request in enumerate(requests))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_request_does_not_depend_on_its_neighbours(data: st.DataObject) -> None:
    # Enough rows that they are drawn in more than one group.
    num_requests = data.draw(st.sampled_from([2, 9, MAX_GROUP_ROWS]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    requests = [
        _Request(
            _KINDS[i % len(_KINDS)],
            seed=int(rng.integers(2**40)),
            num_drafts=int(rng.integers(0, 5)),
            vocab_size=31,
            points=bool(rng.integers(2)),
        )
        for i in range(num_requests)
    ]
    together = _verify(requests)
    for i in rng.choice(num_requests, min(num_requests, 9), replace=False).tolist():
        alone = _verify(requests[i : i + 1])
        assert alone.token_ids[0] == together.token_ids[i]
        assert alone.num_accepted[0] == together.num_accepted[i] and alone.finite[0] == together.finite[i]
        assert [list(one) for one in alone.logprobs[0]] == [list(one) for one in together.logprobs[i]]


@pytest.mark.parametrize("params", [*_KINDS[1:6], _KINDS[7]], ids=_id)
def test_a_drafter_that_is_the_target_is_always_believed(params: SamplingParams) -> None:
    bare = replace(params, repetition_penalty=1.0, presence_penalty=0.0)
    requests = [_Request(bare, seed=seed, num_drafts=3, vocab_size=40, likeness=1.0) for seed in range(40)]
    assert _verify(requests).num_accepted == [3] * 40


def test_a_drafter_that_believes_in_the_impossible_is_never_believed() -> None:
    requests = [_Request(SamplingParams(), seed=seed, num_drafts=2, vocab_size=10) for seed in range(20)]
    for request in requests:
        request.logits[0, request.drafts[0]] = -torch.inf
    assert _verify(requests).num_accepted == [0] * 20


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_drafter_whose_numbers_are_none_costs_its_drafts_alone(bad: float) -> None:
    requests = [_Request(SamplingParams(), seed=seed, num_drafts=2, vocab_size=10) for seed in range(30)]
    for request in requests:
        logits = torch.full((1, 10), bad)
        drafted = DraftBatch.make([request.row(0)], 1, "cpu").draw(logits, 0)
        assert request.weights is not None and drafted.weights is not None and 0 <= int(drafted.token_ids) < 10
        request.weights[0], request.drafts[0] = drafted.weights[0], int(drafted.token_ids)
    output = _verify(requests)
    # A replacement that happens to be the draft is no harm.
    for i, request in enumerate(requests):
        weights = token_probabilities(request.logits[0].tolist(), request.params)
        uniform = float(uniforms([request.seed], [request.position], Stream.RESIDUAL)[0])
        assert output.token_ids[i][0] == _inverse(weights, uniform) and output.finite[i]


@pytest.mark.parametrize("params", _KINDS, ids=_id)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("points", [False, True], ids=["drawn", "points"])
def test_a_row_that_is_not_finite_matters_where_it_is_reached(params: SamplingParams, bad: float, points: bool) -> None:
    requests = [
        _Request(_KINDS[i % 9] if i != 4 else params, seed=i, num_drafts=i % 4 if i != 4 else 3, vocab_size=23)
        for i in range(9)
    ]
    # Accepted to its end: it drafts what it gets.
    requests[4] = request = _Request(params, seed=4, num_drafts=3, vocab_size=23, points=points, likeness=1.0)
    for _ in range(3):
        tokens = _verify([request]).token_ids[0]
        request.drafts[: len(tokens)] = tokens[:3]
    sound = _verify(requests)
    assert sound.num_accepted[4] == 3
    for place in range(4):
        kept = request.logits[place].clone()
        request.logits[place] = bad
        output = _verify(requests)
        if place < 3:
            # Whatever comes out of such a row, no draft stands for being the same.
            draft, request.drafts[place] = request.drafts[place], output.token_ids[4][place]
            again = _verify([request])
            request.drafts[place] = draft
            assert again.num_accepted == [place] and again.finite == [False]
        request.logits[place] = kept
        assert output.finite == [i != 4 for i in range(9)]
        assert output.num_accepted[4] == place and output.token_ids[4][:-1] == sound.token_ids[4][:place]
        assert [ids for i, ids in enumerate(output.token_ids) if i != 4] == [
            ids for i, ids in enumerate(sound.token_ids) if i != 4
        ]
    # Beyond a rejection nobody looks: the first draft cannot be what the row gives.
    request.logits[0, request.drafts[0]] = -torch.inf
    request.logits[1:] = bad
    output = _verify(requests)
    assert output.num_accepted[4] == 0 and output.finite == [True] * 9


def test_logprobs_are_those_of_the_tokens_that_were_emitted() -> None:
    requests = [
        _Request(_KINDS[i % 9], seed=i, num_drafts=i % 5, vocab_size=23, points=i % 2 == 0, likeness=0.9)
        for i in range(36)
    ]
    output = _verify(requests)
    assert max(output.num_accepted) > 1
    for i, request in enumerate(requests):
        if request.params.logprobs is None:
            assert output.logprobs[i] == ()
            continue
        assert [next(iter(one)) for one in output.logprobs[i]] == output.token_ids[i]
        raw = request.logits.log_softmax(-1)
        for j, one in enumerate(output.logprobs[i]):
            assert set(one) == {output.token_ids[i][j], *raw[j].topk(request.params.logprobs).indices.tolist()}
            for token, value in one.items():
                assert value == pytest.approx(raw[j, token].item(), abs=1e-5)


def test_requests_that_did_not_draft_are_sampled_as_ever() -> None:
    requests = [_Request(params, seed=i, num_drafts=0, vocab_size=19) for i, params in enumerate(_KINDS)]
    logits, wanted, chains = _make_inputs(requests)
    output = verify(logits, wanted, chains)
    assert output.token_ids == sample(logits, wanted).token_ids[:, None].tolist()
    assert output.num_accepted == [0] * len(_KINDS)


def test_the_two_halves_are_the_whole_and_leave_their_inputs_alone() -> None:
    requests = [_Request(_KINDS[i % 9], seed=i, num_drafts=1 + i % 3, vocab_size=23) for i in range(20)]
    logits, wanted, chains = _make_inputs(requests)
    assert chains.weights is not None
    before = [logits.clone(), chains.weights.clone()]
    first, second = verify(logits, wanted, chains), accept_chains(sample_chains(logits, wanted, chains), chains)
    assert first.token_ids == second.token_ids and first.logprobs == second.logprobs
    assert torch.equal(before[0], logits) and torch.equal(before[1].nan_to_num(), chains.weights.nan_to_num())


def test_greedy_requests_are_points_even_beside_weights() -> None:
    requests = [_Request(_KINDS[i % 9], seed=i, num_drafts=3, vocab_size=23, likeness=0.9) for i in range(18)]
    logits, wanted, chains = _make_inputs(requests)
    assert chains.weights is not None
    weights = torch.full((18, *chains.weights.shape[1:]), torch.nan, dtype=torch.float64)
    weights[chains.drawn] = chains.weights
    widened = replace(chains, drawn=np.arange(18), weights=weights)
    assert verify(logits, wanted, widened).token_ids == verify(logits, wanted, chains).token_ids


def test_a_greedy_batch_needs_one_look_at_its_rows() -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(1))
    best = logits.argmax(-1).tolist()
    chains = Chains(num_drafts=np.array([4, 1]), token_ids=np.array([[*best[:2], 50, best[3]], [best[5], 0, 0, 0]]))
    calls = []

    def row_max(logits_MV: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(logits_MV)
        return torch.max(logits_MV, dim=-1)

    output = verify(logits, SamplingBatch.greedy(7), chains, row_max)
    assert output.token_ids == [best[:3], best[5:]] and output.num_accepted == [2, 1]
    assert len(calls) == 1 and calls[0] is logits


def test_rows_that_do_not_fit_the_drafts_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="5 rows of logits for 4 newest tokens and drafts"):
        verify(
            torch.zeros(5, 9),
            SamplingBatch.greedy(5),
            Chains(num_drafts=np.array([2, 0]), token_ids=np.zeros((2, 2), dtype=np.int64)),
        )


def test_no_requests_have_an_empty_answer() -> None:
    chains = Chains(num_drafts=np.array([], dtype=np.int64), token_ids=np.zeros((0, 4), dtype=np.int64))
    assert verify(torch.empty(0, 9), SamplingBatch.greedy(0), chains).token_ids == []
