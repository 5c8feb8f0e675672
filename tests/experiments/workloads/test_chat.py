"""Conversations: whose turns follow whose, after how long, and what they hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.workloads.base import Streams, WorkloadItem
from experiments.workloads.chat import Chat
from experiments.workloads.prompts import RandomTokens, TextPrompts


def _make_chat(**options: object) -> Chat:
    given: dict = {"num_requests": 40, "concurrency": 3, "min_user_tokens": 2, "max_user_tokens": 5}
    given |= {"min_output_tokens": 1, "max_output_tokens": 7} | options
    if given.get("request_rate_rps"):
        given["concurrency"] = None
    return Chat(**given)


def _items(chat: Chat, repeat: int = 0, vocab_size: int = 2**62) -> list[WorkloadItem]:
    return list(chat.items(Streams.make(seed=0, repeat=repeat), RandomTokens(vocab_size)))


def _conversations(items: list[WorkloadItem]) -> list[list[WorkloadItem]]:
    return [list(turns) for _, turns in itertools.groupby(items, key=lambda item: item.client_id)]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    turns=st.sampled_from(["geometric", "fixed"]),
    mean=st.integers(1, 6),
    system=st.integers(0, 9),
    room=st.none() | st.integers(0, 30),
    rate=st.none() | st.just(2.0),
    repeat=st.integers(0, 3),
)
def test_every_turn_follows_the_one_before_it_in_its_conversation(
    count: int, turns: str, mean: int, system: int, room: int | None, rate: float | None, repeat: int
) -> None:
    limit = None if room is None else system + 12 + room
    chat = _make_chat(
        num_requests=count,
        turns=turns,
        mean_turns=mean,
        system_prompt_tokens=system,
        max_context_tokens=limit,
        request_rate_rps=rate,
    )
    items = _items(chat, repeat)
    assert len(items) == count == chat.num_requests
    conversations = _conversations(items)
    assert [talk[0].client_id for talk in conversations] == list(range(len(conversations)))
    begins = {talk[0].prompt_token_ids[:system] for talk in conversations}
    assert len(begins) == 1
    for talk in conversations:
        place = items.index(talk[0])
        assert [item.follows for item in talk] == [None, *range(place, place + len(talk) - 1)]
        assert talk[0].think_s == 0 and all(item.think_s > 0 and item.arrival_s is None for item in talk[1:])
        assert (talk[0].arrival_s is None) == (rate is None)
        contexts = np.cumsum([len(item.prompt_token_ids) + item.max_tokens for item in talk])
        assert limit is None or contexts[-1] <= limit
        messages = [len(talk[0].prompt_token_ids) - system, *(len(item.prompt_token_ids) for item in talk[1:])]
        assert all(2 <= length <= 5 for length in messages)
        assert all(1 <= item.max_tokens <= 7 for item in talk)
        if turns == "fixed":
            whole = len(talk) == mean
            last, full = talk is conversations[-1], limit is not None and contexts[-1] > limit - 12
            assert whole or (len(talk) < mean and (last or full))
    arrivals = [talk[0].arrival_s for talk in conversations]
    assert rate is None or arrivals == sorted(arrivals)


def test_messages_are_their_own_and_one_conversation_begins_like_text_does() -> None:
    items = _items(_make_chat(system_prompt_tokens=3))
    assert len({item.prompt_token_ids for item in items}) == len(items)
    source = TextPrompts(["x = 1\n"], lambda text: [ord(c) for c in text], first_token_id=1)
    for system in (0, 3):
        made = list(_make_chat(system_prompt_tokens=system).items(Streams.make(seed=0, repeat=0), source))
        assert all((item.prompt_token_ids[0] == 1) == (item.follows is None) for item in made)
        assert all(1 not in item.prompt_token_ids[1:] for item in made)


def test_a_conversation_ends_where_its_context_is_full_and_not_before() -> None:
    options = {"min_user_tokens": 4, "max_user_tokens": 4, "min_output_tokens": 6, "max_output_tokens": 6}
    chat = _make_chat(**options, turns="fixed", mean_turns=50, system_prompt_tokens=5, max_context_tokens=35)
    assert [len(talk) for talk in _conversations(_items(chat))] == [3] * 13 + [1]


def test_numbers_of_turns_are_geometric() -> None:
    talks = _conversations(_items(_make_chat(num_requests=40_000, mean_turns=2.5), vocab_size=9))[:-1]
    counts = np.bincount([min(len(talk), 9) for talk in talks], minlength=10)[1:]
    assert counts.sum() > 15_000
    expected = stats.geom(1 / 2.5).pmf(np.arange(1, 10))
    expected[-1] = 1 - expected[:-1].sum()
    assert stats.chisquare(counts, expected * counts.sum()).pvalue > 0.001


@pytest.mark.parametrize(("kind", "cv"), [("exponential", 1.0), ("lognormal", 2.0), ("lognormal", 0.3)])
def test_think_times_have_their_distribution(kind: str, cv: float) -> None:
    chat = _make_chat(num_requests=40_000, think_time=kind, mean_think_s=3.0, think_cv=cv, mean_turns=8.0)
    times = np.array([item.think_s for item in _items(chat, vocab_size=9) if item.follows is not None])
    sigma = math.sqrt(math.log1p(cv**2))
    shape = stats.lognorm(s=sigma, scale=3.0 * math.exp(-(sigma**2) / 2))
    assert stats.kstest(times, stats.expon(scale=3.0).cdf if kind == "exponential" else shape.cdf).pvalue > 0.001
    # Five standard errors of the mean.
    assert np.mean(times) == pytest.approx(3.0, rel=5 * cv / math.sqrt(len(times)))


def test_one_question_does_not_shift_another() -> None:
    base = _items(_make_chat())
    slow = _items(_make_chat(mean_think_s=9.0, think_time="lognormal"))
    assert [(i.prompt_token_ids, i.max_tokens, i.follows) for i in base] == [
        (i.prompt_token_ids, i.max_tokens, i.follows) for i in slow
    ]
    opened = _items(_make_chat(request_rate_rps=4.0))
    assert [i.prompt_token_ids for i in base] == [i.prompt_token_ids for i in opened]
    fewer = _items(_make_chat(turns="fixed", mean_turns=1))
    assert [(len(i.prompt_token_ids), i.max_tokens) for i in base] == [
        (len(i.prompt_token_ids), i.max_tokens) for i in fewer
    ]
    longer = _items(_make_chat(turns="fixed", mean_turns=50))
    assert [i.think_s for i in base if i.follows is not None] == [
        j.think_s for i, j in zip(base, longer, strict=True) if i.follows is not None
    ]
    assert _items(_make_chat(), repeat=1) != base == _items(_make_chat())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("num_requests", 0), ("turns", "poisson"), ("mean_turns", 0.5), ("system_prompt_tokens", -1)),
        *(("min_user_tokens", 0), ("max_output_tokens", 0), ("think_time", "none"), ("mean_think_s", -1)),
        *(("think_cv", 0), ("mean_think_s", float("nan")), ("max_context_tokens", 11), ("concurrency", None)),
    ],
)
def test_an_impossible_chat_is_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^workload\.{option}={value!r}: must be "):
        _make_chat(**{option: value})


def test_fixed_turns_are_whole() -> None:
    with pytest.raises(ValueError, match=r"workload\.mean_turns=2\.5: must be whole"):
        _make_chat(turns="fixed", mean_turns=2.5)
