"""Prompt lookup against scanning the text anew each time."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from minivllm.speculation.base import DraftRequest
from minivllm.speculation.ngram import Ngram

_TOKENS = st.lists(st.integers(0, 2), max_size=12)


def _make(**kwargs) -> Ngram:
    return Ngram(target=None, **kwargs)  # type: ignore[arg-type]


def _ask(drafter: Ngram, request_id: int, num_tokens: int, count: int) -> list[int]:
    request = DraftRequest(request_id=request_id, row=0, num_tokens=num_tokens, num_draft_tokens=count)
    (drafts,) = drafter.propose([request])
    return list(drafts)


def _latest(tokens: list[int], suffix: list[int]) -> int | None:
    """The place behind the latest occurrence of a suffix that something follows."""
    places = [end for end in range(len(suffix), len(tokens)) if tokens[end - len(suffix) : end] == suffix]
    return places[-1] if places else None


def _rescan(tokens: list[int], min_ngram: int, max_ngram: int, count: int) -> list[int]:
    for length in range(min(max_ngram, len(tokens)), min_ngram - 1, -1):
        at = _latest(tokens, tokens[-length:])
        if at is not None:
            text = list(tokens)
            for _ in range(count):
                text.append(text[at])
                at += 1
            return text[len(tokens) :]
    return []


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    start=st.lists(st.integers(0, 2), min_size=1, max_size=20),
    pieces=st.lists(_TOKENS.filter(bool), max_size=6),
    lengths=st.tuples(st.integers(1, 3), st.integers(0, 3)),
    count=st.integers(1, 9),
)
def test_drafts_are_what_a_scan_of_the_whole_text_finds(start, pieces, lengths, count) -> None:
    min_ngram, max_ngram = lengths[0], sum(lengths)
    drafter = _make(min_ngram=min_ngram, max_ngram=max_ngram)
    drafter.start(5, start)
    tokens = list(start)
    assert _ask(drafter, 5, len(tokens), count) == _rescan(tokens, min_ngram, max_ngram, count)
    for piece in pieces:
        tokens += piece
        drafter.extend(5, len(tokens), piece)
        assert _ask(drafter, 5, len(tokens), count) == _rescan(tokens, min_ngram, max_ngram, count)
    # A preemption forgets it, and its return brings all back.
    drafter.end(5)
    drafter.start(5, tokens)
    assert _ask(drafter, 5, len(tokens), count) == _rescan(tokens, min_ngram, max_ngram, count)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    events=st.lists(st.tuples(st.integers(0, 2), _TOKENS.filter(bool), st.booleans()), min_size=1, max_size=10),
    max_ngram=st.integers(1, 4),
    count=st.integers(1, 5),
)
def test_other_texts_are_looked_up_where_the_own_has_nothing_as_long(events, max_ngram, count) -> None:
    drafter = _make(max_ngram=max_ngram, across_requests=True)
    texts: dict[int, list[int]] = {}
    # Every n-gram that something followed, in the order of writing: where that is.
    log: list[tuple[list[int], list[int], int]] = []
    for request_id, tokens, ends in events:
        if request_id not in texts:
            texts[request_id] = []
            drafter.start(request_id, tokens)
        else:
            drafter.extend(request_id, len(texts[request_id]) + len(tokens), tokens)
        text = texts[request_id]
        for token in tokens:
            for length in range(1, min(max_ngram, len(text)) + 1):
                log.append((text[-length:], text, len(text)))
            text.append(token)
        wanted = _look_up_everywhere(text, log, max_ngram, count)
        assert _ask(drafter, request_id, len(text), count) == wanted
        if ends:
            drafter.end(request_id)
            del texts[request_id]


def _look_up_everywhere(text: list[int], log, max_ngram: int, count: int) -> list[int]:
    for length in range(min(max_ngram, len(text)), 0, -1):
        if _latest(text, text[-length:]) is not None:
            return _rescan(text, length, length, count)
        places = [(other, at) for key, other, at in log if key == text[-length:]]
        if places:
            other, at = places[-1]
            return other[at : at + count]
    return []


def test_old_texts_are_forgotten_and_new_ones_never_before_their_time() -> None:
    limit = 40
    drafter = _make(max_ngram=1, across_requests=True, max_history_entries=limit)
    # Each text enters one n-gram: 2 * i is followed by 2 * i + 1.
    for i in range(300):
        drafter.start(i, [2 * i, 2 * i + 1])
        drafter.end(i)
    drafter.start(1000, [-1])
    found = []
    for i in range(300):
        drafter.end(1000)
        drafter.start(1000, [2 * i])
        drafts = _ask(drafter, 1000, 1, 3)
        assert drafts in ([], [2 * i + 1])
        found.append(bool(drafts))
    assert sum(found) <= 2 * limit and all(found[-limit + 1 :]) and not any(found[: -2 * limit])


def test_a_text_that_is_being_written_is_found_by_others() -> None:
    drafter = _make(across_requests=True)
    drafter.start(0, [7, 8, 9])
    drafter.start(1, [1, 7, 8])
    assert _ask(drafter, 1, 3, 4) == [9]
    drafter.extend(0, 5, [10, 11])
    assert _ask(drafter, 1, 3, 4) == [9, 10, 11]
    assert _make().propose([]) == []


def test_requests_do_not_see_each_other_unless_asked_to() -> None:
    drafter = _make()
    drafter.start(0, [7, 8, 9])
    drafter.start(1, [1, 7, 8])
    assert _ask(drafter, 1, 3, 4) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"min_ngram": 0}, "speculation.min_ngram=0: must be 1 or more"),
        ({"min_ngram": 3, "max_ngram": 2}, "speculation.max_ngram=2: must be speculation.min_ngram=3 or more"),
        ({"across_requests": 1}, "speculation.across_requests=1: must be true or false"),
        ({"max_history_entries": 0}, "speculation.max_history_entries=0: must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_one_line(kwargs, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        _make(**kwargs)
    assert str(caught.value) == message
