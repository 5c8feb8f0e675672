"""A request's own books: what became of its drafts, and tokens that are taken back."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from minivllm.request import Request, Speculated
from minivllm.sampling_params import SamplingParams


def _make_request(num_output_tokens: int = 0, **params) -> Request:
    request = Request(
        request_id=0,
        prompt_token_ids=[3, 1, 4],
        sampling_params=SamplingParams(**{"max_tokens": 10, **params}),
        sampling_seed=0,
        arrival_s=0.0,
        max_total_tokens=20,
    )
    for i in range(num_output_tokens):
        request.append(10 + i, now_s=0.5 * i)
        request.logprobs.append({10 + i: -1.0})
    return request


def test_cut_forgets_tokens_times_and_logprobs_behind_the_first_ones() -> None:
    request = _make_request(5)
    request.cut(2)
    assert request.token_ids == [3, 1, 4, 10, 11] and request.num_tokens == 5
    assert request.output_token_ids == [10, 11] and request.num_output_tokens == 2
    assert request.token_times_s == [0.0, 0.5] and request.last_token_s == 0.5
    assert request.logprobs == [{10: -1.0}, {11: -1.0}]
    assert request.first_token_s == 0.0


def test_cut_behind_the_last_token_changes_nothing() -> None:
    request = _make_request(5)
    request.cut(5)
    assert request.num_output_tokens == len(request.token_times_s) == len(request.logprobs) == 5


@pytest.mark.parametrize("count", [0, 6, -1])
def test_cut_keeps_at_least_one_token_and_invents_none(count: int) -> None:
    with pytest.raises(AssertionError):
        _make_request(5).cut(count)


def test_tokens_left_are_those_of_max_tokens_or_of_the_context() -> None:
    assert _make_request(4).num_tokens_left == 6
    assert _make_request(4, max_tokens=100).num_tokens_left == 13
    assert _make_request(4, max_tokens=4).num_tokens_left == 0 and _make_request(4, max_tokens=4).is_full


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    verifications=st.lists(
        st.integers(1, 6).flatmap(lambda depth: st.tuples(st.just(depth), st.integers(0, depth), st.integers(0, 3))),
        max_size=12,
    )
)
def test_counts_by_position_are_those_of_all_verifications(verifications) -> None:
    """Of each: drafts on the longest path, accepted ones, and drafts beside it."""
    speculated = Speculated()
    for depth, accepted, beside in verifications:
        speculated.add(depth + beside, depth, accepted)
    deepest = max((depth for depth, _, _ in verifications), default=0)
    assert speculated.proposed == [sum(depth > i for depth, _, _ in verifications) for i in range(deepest)]
    assert speculated.accepted == [sum(accepted > i for _, accepted, _ in verifications) for i in range(deepest)]
    assert speculated.evaluated == [
        sum(depth > i and accepted >= i for depth, accepted, _ in verifications) for i in range(deepest)
    ]
    assert speculated.num_verifications == len(verifications)
    assert speculated.num_draft_tokens == sum(depth + beside for depth, _, beside in verifications)
    assert speculated.num_accepted_tokens == sum(speculated.accepted)


@pytest.mark.parametrize("counts", [(3, 3, 4), (2, 3, 1), (3, 3, -1)])
def test_verifications_that_cannot_be_are_refused(counts) -> None:
    with pytest.raises(AssertionError):
        Speculated().add(*counts)
