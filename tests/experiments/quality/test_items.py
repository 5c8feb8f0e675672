"""Windows, prompts and task items: where they come from, that they are disjoint and spread, and short texts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from experiments.points import ASSETS
from experiments.quality.identifiers import leading_identifier
from experiments.quality.items import make_items, text_path
from experiments.quality.settings import QualityConfig
from experiments.quality.spread import spread
from experiments.workloads.prompts import read_documents
from minivllm.llm import load_tokenizer

SMALL: dict[str, Any] = {
    "num_windows": 30,
    "window_tokens": 24,
    "num_prompts": 7,
    "prompt_tokens": 9,
    "num_task_items": 40,
    "task_context_tokens": 48,
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(ASSETS / "reference-target"))


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return read_documents(text_path(QualityConfig()))


def _write(folder: Path, *texts: str) -> str:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"path": f"{i}.py", "text": text}) + "\n" for i, text in enumerate(texts)))
    return str(path)


@settings(max_examples=60, deadline=None)
@given(room=st.lists(st.integers(0, 9), max_size=7), wanted=st.integers(0, 40))
def test_places_are_distinct_and_no_document_gives_more_than_another_could(room: list[int], wanted: int) -> None:
    places = spread(room, wanted)
    assert len(places) == len(set(places)) == min(wanted, sum(room))
    assert all(0 <= place < room[document] for document, place in places)
    taken = [sum(document == d for document, _ in places) for d in range(len(room))]
    full = [taken[d] == room[d] for d in range(len(room))]
    assert all(full[d] or taken[d] >= max(taken) - 1 for d in range(len(room)))


def test_places_lie_evenly_in_a_document() -> None:
    assert spread([10], 2) == [(0, 2), (0, 7)]
    assert spread([3, 100], 4) == [(0, 0), (0, 2), (1, 25), (1, 75)]


def test_windows_are_stretches_of_text_that_do_not_overlap(tokenizer: Any, documents: list[str]) -> None:
    items = make_items(QualityConfig(**SMALL), tokenizer)
    assert len(items.windows) == 30 and {len(window) for window in items.windows} == {24}
    assert {window[0] for window in items.windows} == {tokenizer.bos_token_id}
    found = [_find(tokenizer.decode(window[1:]), documents) for window in items.windows]
    # Of 24 documents, 22 have room for one.
    assert len({document for document, _ in found}) >= 22
    ends: dict[int, int] = {}
    for (document, start), window in zip(found, items.windows, strict=True):
        assert start >= ends.get(document, 0)
        ends[document] = start + len(tokenizer.decode(window[1:]))
    assert [len(prompt) for prompt in items.prompts] == [9] * 7


def _find(text: str, documents: list[str]) -> tuple[int, int]:
    (document, *_) = [d for d, whole in enumerate(documents) if text in whole]
    return document, documents[document].index(text)


def test_a_task_item_ends_right_before_an_identifier_that_it_has_seen(tokenizer: Any, documents: list[str]) -> None:
    items = make_items(QualityConfig(**SMALL), tokenizer).tasks
    assert len(items) == 40 and {len(item.context) for item in items} == {48}
    sources = set()
    for item in items:
        assert item.context[0] == tokenizer.bos_token_id
        context = tokenizer.decode(item.context[1:])
        assert re.search(rf"\b{item.expected}\b", context)
        # In the document the identifier follows, whole, after one blank at most.
        pattern = re.escape(context) + rf"(?: |(?<!\w)){item.expected}\b"
        following = [d for d, text in enumerate(documents) if re.search(pattern, text)]
        assert following, item
        sources.update(following)
    assert len(sources) >= 15


def test_items_are_the_same_each_time_and_others_for_other_settings(tokenizer: Any) -> None:
    one, same, other = (make_items(QualityConfig(**SMALL | more), tokenizer) for more in ({}, {}, {"num_windows": 29}))
    assert one == same and one.sha256 == same.sha256 != other.sha256


PROGRAM = '''
def total(weights, scale):
    # weights in a comment: weights
    "weights in a string" + 'weights' + """weights
    and weights"""
    if weights and not None:
        return sum(weights) + weights2 + x
'''


def test_only_names_in_code_are_asked_for(tokenizer: Any, tmp_path: Path) -> None:
    config = QualityConfig(
        text=_write(tmp_path, PROGRAM), num_windows=0, num_prompts=0, num_task_items=2, task_context_tokens=14
    )
    items = make_items(config, tokenizer).tasks
    assert [item.expected for item in items] == ["weights", "weights"]
    assert tokenizer.decode(items[0].context[1:]).endswith('and weights"""\n    if')
    assert tokenizer.decode(items[1].context[1:]).endswith("return sum(")


@pytest.mark.parametrize(
    ("text", "answer", "is_open"),
    [
        ("", "", True),
        (" ", "", True),
        (" na", "na", True),
        ("  name(", "name", False),
        ("na_me2 =", "na_me2", False),
        ("\n", "", False),
        ("2x", "", False),
        (".name", "", False),
        ("été,", "été", False),
    ],
)
def test_the_leading_identifier_is_whole_once_something_follows(text: str, answer: str, is_open: bool) -> None:
    assert leading_identifier(text) == (answer, is_open)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"window_tokens": 400}, r"quality\.window_tokens=400: no document of quality\.text='.*' is that long: lower"),
        ({"num_windows": 90}, r"quality\.num_windows=90: quality\.text='.*' has \d+ stretches of quality\.window_tok"),
        ({"prompt_tokens": 400}, r"quality\.prompt_tokens=400: no document of"),
        ({"num_task_items": 50}, r"quality\.num_task_items=50: quality\.text='.*' has 2 places to ask for an identifi"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_text_that_is_too_short_is_refused_by_name(
    tokenizer: Any, tmp_path: Path, more: dict[str, int], message: str
) -> None:
    few = {"num_windows": 1, "window_tokens": 8, "num_prompts": 1, "prompt_tokens": 8, "num_task_items": 0}
    config = QualityConfig(text=_write(tmp_path, PROGRAM), task_context_tokens=14, **few | more)
    with pytest.raises(ValueError, match=f"^{message}"):
        make_items(config, tokenizer)


def test_a_text_that_cannot_be_read_is_refused_by_name(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^quality\.text='.*absent': cannot be read: .*; use heldout or a \.jsonl file$"
    ):
        make_items(QualityConfig(text=str(tmp_path / "absent")), tokenizer)


def test_a_tokenizer_without_a_first_token_gets_windows_without_one(tokenizer: Any) -> None:
    class WithoutFirst:
        bos_token_id = None
        encode, decode = tokenizer.encode, tokenizer.decode

    config = QualityConfig(**SMALL)
    bare, usual = make_items(config, WithoutFirst()), make_items(config, tokenizer)
    assert {len(window) for window in bare.windows} == {24} and len(bare.tasks[0].context) == 48
    assert bare.windows[0][0] != usual.windows[0][0]
