from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minivllm.sampling.random import random_bits
from minivllm.sampling.sampler import SamplingBatch, SamplingRow
from minivllm.sampling.sampler import sample as cpu_sample
from minivllm.sampling_params import SamplingParams
from minivllm_kernels.sample.arithmetic.kernel import uniform_below, weights_of
from minivllm_kernels.sample.kernel import SampleConfig, SamplingState, argmax, logprobs, sample
from minivllm_kernels.sample.reference import argmax_reference, sample_reference, uniform_reference

# Several chunks of a small vocabulary; wide bins, so that thresholds lie in lists longer than what stays in registers.
_CONFIG = SampleConfig(block=32, num_bins=4, resident=16, num_warps=1, splits=2)

_KINDS = [
    SamplingParams(temperature=0.0),
    SamplingParams(),
    SamplingParams(temperature=1e-30),
    SamplingParams(temperature=0.6, top_k=5),
    SamplingParams(top_p=0.8),
    SamplingParams(temperature=50.0, top_p=0.5),
    SamplingParams(min_p=0.1),
    SamplingParams(top_k=30, top_p=0.3),
    SamplingParams(temperature=1.4, top_k=40, top_p=0.95, min_p=0.02, repetition_penalty=1.1),
    SamplingParams(temperature=0.0, repetition_penalty=1.5, frequency_penalty=0.3),
    SamplingParams(presence_penalty=-1.0, frequency_penalty=0.5, top_p=0.9),
]


@pytest.fixture(autouse=True)
def _memory_is_poisoned() -> Iterator[None]:
    """`torch.empty` gives NaN and the largest integers, as the last launch may have left them."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def _make_logits(num_rows: int, vocab_size: int, *, seed: int = 0, step: float = 0.0) -> Tensor:
    """Normal logits, of which many tie if they are multiples of a step."""
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2
    return (logits / step).round() * step if step else logits


def _make_state(params: Sequence[SamplingParams], seeds: Sequence[int], num_prompt_tokens: int = 0) -> SamplingState:
    def floats(key: str) -> Tensor:
        return torch.tensor([getattr(one, key) for one in params], dtype=torch.float64)

    return SamplingState(
        temperature=floats("temperature"),
        top_k=floats("top_k").int(),
        top_p=floats("top_p"),
        min_p=floats("min_p"),
        repetition=floats("repetition_penalty"),
        presence=floats("presence_penalty"),
        frequency=floats("frequency_penalty"),
        seed=torch.tensor(seeds),
        num_prompt_tokens=torch.full((len(params),), num_prompt_tokens, dtype=torch.int32),
    )


def _sample(
    logits: Tensor,
    state: SamplingState,
    tokens: Tensor,
    rows: Sequence[int],
    positions: Sequence[int],
    config: SampleConfig = _CONFIG,
    **promises: bool,
) -> list[int]:
    out_tokens = torch.full((len(rows),), -7)
    sample(
        logits,
        rows=torch.tensor(rows, dtype=torch.int32),
        positions=torch.tensor(positions, dtype=torch.int32),
        state=state,
        tokens=tokens,
        out_tokens=out_tokens,
        config=config,
        **promises,
    )
    return out_tokens.tolist()


def _cpu_tokens(
    logits: Tensor,
    params: Sequence[SamplingParams],
    seeds: Sequence[int],
    positions: Sequence[int],
    tokens: Tensor,
    num_prompt_tokens: int = 0,
) -> list[int]:
    rows = [
        SamplingRow(
            params=one,
            seed=seed,
            position=position,
            prompt_token_ids=tokens[index, :num_prompt_tokens].numpy(),
            output_token_ids=tokens[index, num_prompt_tokens:position].numpy(),
        )
        for index, (one, seed, position) in enumerate(zip(params, seeds, positions, strict=True))
    ]
    return cpu_sample(logits.float(), SamplingBatch.make(rows, "cpu")).token_ids.tolist()


_NO_TOKENS = torch.zeros(16, 1, dtype=torch.int32)


@functools.cache
def _late_seed() -> int:
    """A seed whose uniform at position 0 is next to 1: it draws the last token that is kept."""
    seeds = list(range(100_000))
    return int(random_bits(seeds, np.zeros(len(seeds), dtype=np.int64)).argmax())


@pytest.mark.parametrize(
    "vocab_size, step, dtype",
    [(75, 0.0, torch.float32), (64, 1.0, torch.float16)],
    ids=["V75-float32", "V64-float16-ties"],
)
def test_every_kind_of_row_draws_what_the_cpu_and_the_reference_draw(
    vocab_size: int, step: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(3)
    num_rows = len(_KINDS)
    # Few different tokens, so that they repeat; the store is longer than what is known.
    tokens = torch.randint(0, 9, (num_rows, 24), generator=generator, dtype=torch.int32)
    positions = list(range(8, 8 + num_rows))
    seeds = [(-1) ** row * row * 0x1234567890ABCD for row in range(num_rows)]
    logits = _make_logits(num_rows, vocab_size, step=step).to(dtype)
    state = _make_state(_KINDS, seeds, num_prompt_tokens=6)
    # Padding, and a batch that is in another order than the store.
    order = [-1, *reversed(range(num_rows))]
    ours = _sample(logits[order], state, tokens, order, [0, *reversed(positions)])
    assert ours[0] == 0
    assert ours[:0:-1] == _cpu_tokens(logits, _KINDS, seeds, positions, tokens, 6)
    reference = sample_reference(
        logits[order],
        rows=torch.tensor(order),
        positions=torch.tensor([0, *reversed(positions)]),
        state=state,
        tokens=tokens,
    )
    assert ours == reference.tolist()


@settings(max_examples=6, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_last_token_that_filters_keep_is_the_references(data: st.DataObject) -> None:
    # Scores fall with the token id, so the last token that is kept tells how many are.
    vocab_size = data.draw(st.integers(1, 50), label="vocab_size")
    step = data.draw(st.sampled_from([0.0, 0.5, 4.0]), label="step")
    logits = _make_logits(3, vocab_size, seed=data.draw(st.integers(0, 99)), step=step).sort(descending=True).values
    params = data.draw(
        st.lists(
            st.builds(
                SamplingParams,
                temperature=st.sampled_from([0.3, 1.0, 4.0]),
                top_k=st.sampled_from([0, 1, 2, 3, 7, 20, 49, 50, 1000]),
                top_p=st.sampled_from([1e-9, 0.25, 0.5, 0.9, 0.99, 1.0]),
                min_p=st.sampled_from([0.0, 0.0, 0.05, 1.0]),
            ),
            min_size=3,
            max_size=3,
        ),
        label="params",
    )
    seeds = [_late_seed()] * 3
    ours = _sample(logits, _make_state(params, seeds), _NO_TOKENS, [0, 1, 2], [0] * 3, penalties=False)
    assert ours == _cpu_tokens(logits, params, seeds, [0] * 3, _NO_TOKENS)
    reference = sample_reference(
        logits,
        rows=torch.arange(3),
        positions=torch.zeros(3, dtype=torch.int64),
        state=_make_state(params, seeds),
        tokens=_NO_TOKENS,
    )
    assert ours == reference.tolist()


def test_of_equals_top_p_keeps_the_first_and_top_k_keeps_all() -> None:
    logits = torch.zeros(2, 70)
    params = [SamplingParams(top_p=0.5), SamplingParams(top_k=3)]
    state = _make_state(params, [_late_seed()] * 2)
    assert _sample(logits, state, _NO_TOKENS, [0, 1], [0, 0], penalties=False) == [34, 69]


def test_min_p_keeps_what_is_exactly_at_its_limit() -> None:
    logits = torch.tensor([[0.0, 0.0, -0.1, -3.0]]).repeat(3, 1)
    params = [SamplingParams(min_p=1.0), SamplingParams(min_p=1.0, top_p=0.9), SamplingParams(min_p=1.0, top_k=3)]
    state = _make_state(params, [_late_seed()] * 3)
    assert _sample(logits, state, _NO_TOKENS, [0, 1, 2], [0] * 3, penalties=False) == [1, 1, 1]


def test_a_row_draws_the_same_alone_in_other_company_and_cut_otherwise() -> None:
    params = [SamplingParams(), SamplingParams(top_p=0.7), SamplingParams(top_k=9)]
    logits, state = _make_logits(3, 90), _make_state(params, [5, 6, 7])
    together = _sample(logits, state, _NO_TOKENS, [0, 1, 2], [4, 5, 6], penalties=False)
    assert together == [
        _sample(logits[row : row + 1], state, _NO_TOKENS, [row], [4 + row], penalties=False)[0] for row in range(3)
    ]
    whole = SampleConfig(block=128, num_bins=64, resident=128, num_warps=1)
    assert together == _sample(logits, state, _NO_TOKENS, [0, 1, 2], [4, 5, 6], config=whole, penalties=False)


def test_repetition_looks_at_the_prompt_and_the_others_at_the_output_only() -> None:
    # Token 0 is in the prompt, 1 twice in the output, 2 lies beyond what is known; 3 never occurs.
    tokens = torch.tensor([[0, 0, 1, 1, 2]], dtype=torch.int32)
    params = [SamplingParams(temperature=0.0, repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)]
    state = _make_state(params, [0], num_prompt_tokens=2)
    # 2 / 2 = 1 in the prompt; 4.5 / 2 - 0.25 - 2 * 0.5 = 1 in the output; -0.5 * 2 = -1.
    for others, expected in (
        ([2.0, 4.0, 0.9, 0.9], 0),
        ([2.0, 4.625, 0.9, 0.9], 1),
        ([2.0, 4.5, 1.0, 1.125], 3),
        ([-0.5, -9.0, -0.875, -1.125], 2),
    ):
        assert _sample(torch.tensor([others]), state, tokens, [0], [4], filters=False) == [expected]


def test_promises_change_no_row_that_keeps_them() -> None:
    params = [SamplingParams(temperature=0.0), SamplingParams(temperature=0.8)]
    logits, state = _make_logits(2, 40), _make_state(params, [1, 2])
    least = _sample(logits, state, _NO_TOKENS, [0, 1], [9, 9], penalties=False, filters=False)
    assert least == _sample(logits, state, _NO_TOKENS, [0, 1], [9, 9])


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0.0), SamplingParams(top_p=0.9)], ids=["greedy", "top_p"]
)
def test_rows_without_a_finite_best_give_minus_one_and_spoil_no_other(params: SamplingParams) -> None:
    logits = _make_logits(4, 40)
    logits[0, 39] = torch.nan
    logits[1, 3] = torch.inf
    logits[2] = -torch.inf
    # A whole chunk without a token.
    logits[3, :33] = -torch.inf
    out = _sample(logits, _make_state([params] * 4, [0] * 4), _NO_TOKENS, [0, 1, 2, 3], [1] * 4, penalties=False)
    assert out[:3] == [-1, -1, -1]
    assert out[3:] == _cpu_tokens(logits[3:], [params], [0], [1], _NO_TOKENS)


def test_float32_parameters_are_read_too() -> None:
    logits, exact = _make_logits(1, 40), _make_state([SamplingParams(temperature=0.5, top_p=0.75)], [3])
    keys = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
    rounded = SamplingState(
        top_k=exact.top_k,
        seed=exact.seed,
        num_prompt_tokens=exact.num_prompt_tokens,
        **{key: getattr(exact, key).float() for key in keys},
    )
    assert _sample(logits, rounded, _NO_TOKENS, [0], [2]) == _sample(logits, exact, _NO_TOKENS, [0], [2])


def test_an_empty_batch_is_fine() -> None:
    assert _sample(torch.empty(0, 40), _make_state([], []), _NO_TOKENS, [], []) == []
    argmax(torch.empty(0, 40), out_tokens=torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("vocab_size", [1, 64, 75])
def test_argmax_is_the_first_of_the_largest(vocab_size: int, dtype: torch.dtype) -> None:
    wide = torch.full((4, vocab_size + 5), torch.nan, dtype=dtype)
    logits = wide[:, :vocab_size]
    logits.copy_(_make_logits(4, vocab_size, step=1.0))
    logits[1] -= 100
    logits[2] = -torch.inf
    logits[2, -1] = -5.0
    logits[3].zero_()
    logits[3, 0] = -0.0
    out = torch.full((4,), -7)
    argmax(logits, out_tokens=out, block=16)
    assert out.tolist() == argmax_reference(logits).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("spoilt", [torch.nan, -torch.nan, torch.inf, -torch.inf], ids=str)
def test_argmax_of_a_failed_row_is_minus_one(spoilt: float) -> None:
    logits = _make_logits(2, 70)
    logits[0, 65] = spoilt
    logits[0, :] = spoilt if spoilt == -torch.inf else logits[0]
    out = torch.full((2,), -7)
    argmax(logits, out_tokens=out, block=16)
    assert out.tolist() == [-1, int(logits[1].argmax())] == argmax_reference(logits).tolist()


@triton.jit
def _uniform_kernel(seeds_ptr, positions_ptr, total_ptr, out_ptr):
    at = tl.program_id(0)
    total = tl.load(total_ptr)
    tl.store(out_ptr + at, uniform_below(tl.load(seeds_ptr + at), tl.load(positions_ptr + at), total))


def test_uniforms_are_the_hash_to_the_last_bit() -> None:
    seeds = torch.tensor([0, 1, -1, (1 << 63) - 1, -(1 << 63), 0x1234567890ABCDEF])
    positions = torch.tensor([0, 1, 2, 131_071, (1 << 31) - 1, 77], dtype=torch.int32)
    bits = random_bits(seeds.tolist(), positions.numpy())
    for total in (1 << 53, (1 << 63) - 1, 1):
        out = torch.empty_like(seeds)
        _uniform_kernel[(6,)](seeds, positions, torch.tensor([total]), out)
        assert out.tolist() == [(int(one) >> 11) * total >> 53 for one in bits]
    assert [uniform_reference(*one) for one in zip(seeds.tolist(), positions.tolist(), strict=True)] == [
        (int(one) >> 11) / (1 << 53) for one in bits
    ]


@triton.jit
def _weights_kernel(distance_ptr, out_ptr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)
    rate = tl.full((), 1.0, tl.float64)
    tl.store(out_ptr + offs, weights_of(tl.load(distance_ptr + offs), rate, 50))


def test_weights_are_powers_of_two_to_a_unit() -> None:
    distance = torch.linspace(-52, 0, 1024, dtype=torch.float64)
    distance[:2] = torch.tensor([-torch.inf, -1e300])
    out = torch.empty(1024, dtype=torch.int64)
    _weights_kernel[(1,)](distance, out, SIZE=1024)
    exact = np.exp2(distance.numpy().astype(np.longdouble)) * 2**50
    # Half a unit of rounding, and 3e-16 of the value.
    assert (np.abs(out.numpy() - exact) <= 0.5 + 3e-16 * exact).all()
    assert out[0] == out[1] == 0 and out[-1] == 1 << 50


def test_logprobs_are_of_the_chosen_token_then_of_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
    ids, values = logprobs(logits, torch.tensor([0, -1]), num_likeliest=2)
    assert ids[0].tolist() == [0, 1, 2] and ids[1, 0] == 0 and ids.dtype == torch.int64
    total = math.log(1 + math.exp(2) + math.exp(1))
    assert values[0].tolist() == pytest.approx([-total, 2 - total, 1 - total])
    assert values[1].tolist() == pytest.approx([-math.log(3)] * 3)
    assert logprobs(logits, torch.tensor([0, 1]), num_likeliest=9)[0].shape == (2, 4)
