from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minivllm.sampling import batch
from minivllm.sampling.batch import MAX_GROUP_ROWS
from minivllm.sampling.sampler import SampleOutput, SamplingBatch, SamplingRow, is_plain, sample
from minivllm.sampling_params import SamplingParams

_GREEDY = SamplingParams(temperature=0.0)

# One of each kind of row, and mixtures.
_KINDS = [
    _GREEDY,
    SamplingParams(),
    SamplingParams(temperature=0.6, top_k=5),
    SamplingParams(top_p=0.8),
    SamplingParams(min_p=0.1),
    SamplingParams(temperature=1.4, top_k=40, top_p=0.95, min_p=0.02, repetition_penalty=1.1),
    SamplingParams(temperature=0.0, repetition_penalty=1.5, frequency_penalty=0.3),
    SamplingParams(presence_penalty=-1.0, logprobs=3),
    SamplingParams(temperature=0.0, logprobs=0),
]


def _id(params: SamplingParams) -> str:
    return "-".join(f"{f.name}={v}" for f in fields(params) if (v := getattr(params, f.name)) != f.default) or "default"


def _make_row(params: SamplingParams = _GREEDY, *, seed: int = 0, position: int = 0) -> SamplingRow:
    tokens = np.random.default_rng(abs(seed) % 2**32).integers(0, 7, size=(2, 5))
    return SamplingRow(
        params=params, seed=seed, position=position, prompt_token_ids=tokens[0], output_token_ids=tokens[1]
    )


def _make_logits(num_rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2


def _sample(logits: Tensor, rows: list[SamplingRow]) -> SampleOutput:
    return sample(logits, SamplingBatch.make(rows, "cpu"))


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, -torch.inf, 1.0]])
    for plain in (SamplingBatch.greedy(2), SamplingBatch.make([_make_row()] * 2, "cpu")):
        output = sample(logits, plain)
        assert output.token_ids.tolist() == [1, 0] and output.token_ids.dtype == torch.int64
        assert output.finite.tolist() == [True, True] and output.logprobs is None


def test_greedy_rows_look_at_no_parameter() -> None:
    unused = SamplingParams(temperature=0.0, top_k=1, top_p=0.1, min_p=0.9, seed=3)
    assert is_plain(unused) and not is_plain(SamplingParams())
    assert SamplingBatch.make([_make_row(unused)], "cpu").groups == ()


def test_only_penalized_rows_need_their_tokens() -> None:
    row = SamplingRow(params=SamplingParams(top_k=3), seed=1, position=4)
    assert _sample(_make_logits(1, 9), [row]).token_ids.shape == (1,)


def test_greedy_penalties_choose_another_token() -> None:
    row = SamplingRow(
        params=SamplingParams(temperature=0.0, repetition_penalty=2.0),
        seed=0,
        position=2,
        prompt_token_ids=np.array([2]),
        output_token_ids=np.array([0, 0]),
    )
    logits = torch.tensor([[3.0, 1.6, 3.1]])
    assert _sample(logits, [row]).token_ids.tolist() == [1]
    assert logits.tolist() == torch.tensor([[3.0, 1.6, 3.1]]).tolist()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_draw_depends_on_its_own_row_alone(data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(2, MAX_GROUP_ROWS + 9))
    logits = _make_logits(num_rows, data.draw(st.sampled_from([7, 50, 301])), data.draw(st.integers(0, 99)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = [
        _make_row(_KINDS[rng.integers(len(_KINDS))], seed=int(rng.integers(-5, 5)), position=int(rng.integers(9)))
        for _ in range(num_rows)
    ]
    together = _sample(logits, rows).token_ids
    some = rng.permutation(num_rows)[: data.draw(st.integers(1, num_rows))]
    assert torch.equal(_sample(logits[some], [rows[i] for i in some]).token_ids, together[some])
    alone = rng.choice(num_rows, size=min(num_rows, 8), replace=False)
    assert [_sample(logits[i : i + 1], [rows[i]]).token_ids.item() for i in alone] == together[alone].tolist()


@pytest.mark.parametrize("params", _KINDS, ids=_id)
def test_the_same_seed_and_position_draw_the_same_token_again(params: SamplingParams) -> None:
    rows = [_make_row(params, seed=seed, position=p) for seed in (0, -1, 10**40, -(2**63)) for p in (0, 1, 4095)]
    logits = _make_logits(1, 300).expand(len(rows), -1)
    assert torch.equal(_sample(logits, rows).token_ids, _sample(logits.clone(), rows).token_ids)


def test_seeds_and_positions_draw_different_tokens() -> None:
    rows = [_make_row(SamplingParams(), seed=seed, position=p) for seed in (0, 1, -1, 2**64) for p in range(50)]
    token_ids = _sample(torch.zeros(1, 10**5).expand(len(rows), -1), rows).token_ids
    assert len(set(token_ids.tolist())) > len(rows) - 3


@pytest.mark.parametrize("params", _KINDS, ids=_id)
def test_a_vocabulary_of_one_has_one_answer(params: SamplingParams) -> None:
    row = SamplingRow(
        params=params, seed=5, position=1, prompt_token_ids=np.array([0]), output_token_ids=np.array([], dtype=int)
    )
    output = _sample(torch.tensor([[-3.0]]), [row])
    assert output.token_ids.tolist() == [0] and output.finite.tolist() == [True]


@pytest.mark.parametrize("params", _KINDS, ids=_id)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_row_that_is_not_finite_is_told_and_spoils_no_other(params: SamplingParams, bad: float) -> None:
    rows = [_make_row(_KINDS[i % len(_KINDS)] if i != 4 else params, seed=i) for i in range(12)]
    logits = _make_logits(12, 301)
    sound = _sample(logits, rows).token_ids
    # -inf is sound as long as another token is left.
    logits[4, slice(None) if bad == -torch.inf else 5] = bad
    output = _sample(logits, rows)
    assert output.finite.tolist() == [i != 4 for i in range(12)]
    others = torch.arange(12) != 4
    assert torch.equal(output.token_ids[others], sound[others])
    assert 0 <= output.token_ids[4] < 301


@pytest.mark.parametrize("params", _KINDS, ids=_id)
def test_masked_tokens_are_never_chosen(params: SamplingParams) -> None:
    allowed = [3, 17, 90]
    logits = torch.full((1, 301), -torch.inf)
    logits[0, allowed] = torch.tensor([0.5, -60.0, 1.0])
    rows = [_make_row(params, seed=seed) for seed in range(200)]
    output = _sample(logits.expand(200, -1), rows)
    assert set(output.token_ids.tolist()) <= set(allowed) and bool(output.finite.all())


@pytest.mark.parametrize("uniform,token", [(0.0, 2), (0.24, 2), (0.25, 4), (0.5, 5), (1 - 2**-53, 5)])
def test_the_ends_of_the_unit_interval_choose_tokens_that_have_weight(
    uniform: float, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "uniforms", lambda seeds, positions: np.full(len(seeds), uniform))
    logits = torch.full((1, 8), -torch.inf)
    logits[0, [2, 4, 5]] = torch.tensor([1.0, 1.0, 2.0]).log()
    assert _sample(logits, [_make_row(SamplingParams())]).token_ids.tolist() == [token]


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = _make_logits(5, 40)
    params = [
        SamplingParams(temperature=0.3, top_k=2, logprobs=4),
        _GREEDY,
        SamplingParams(temperature=0.0, repetition_penalty=3.0, logprobs=0),
        SamplingParams(temperature=2.0, logprobs=1024),
        SamplingParams(),
    ]
    output = _sample(logits, [_make_row(p, seed=i) for i, p in enumerate(params)])
    assert output.logprobs is not None
    reported = output.logprobs.of_rows()
    assert list(reported) == [0, 2, 3]
    raw = torch.log_softmax(logits, dim=-1)
    for row, logprobs in reported.items():
        chosen = int(output.token_ids[row])
        assert next(iter(logprobs)) == chosen
        likeliest = raw[row].topk(min(params[row].logprobs or 0, 40)).indices.tolist()
        assert set(logprobs) == {chosen, *likeliest}
        for token, value in logprobs.items():
            assert value == pytest.approx(raw[row, token].item(), abs=1e-5)
    assert [token for token in reported[3] if token != next(iter(reported[3]))] == [
        token for token in raw[3].argsort(descending=True).tolist() if token != next(iter(reported[3]))
    ]


def test_an_empty_batch_has_an_empty_answer() -> None:
    output = _sample(torch.empty(0, 9), [])
    assert output.token_ids.shape == (0,) and output.finite.shape == (0,)


def test_a_batch_for_other_logits_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="3 rows of logits for 2 requests"):
        sample(torch.zeros(3, 4), SamplingBatch.greedy(2))
