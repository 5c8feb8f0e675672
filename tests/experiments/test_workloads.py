"""Workloads: paired by repeat, true to their statistics, refused in one line where they make no sense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from loads import make_load

from experiments.compose import groups
from experiments.workloads.base import Streams, WorkloadItem, warmup_items, workload_sha256
from experiments.workloads.paragraphs import paragraphs
from experiments.workloads.prompts import TextPrompts, read_documents

WORKLOADS = groups()["workload"]
TEXT = ["def one():\n    return 1\n\n\ndef two():\n    return 2\n", "import os\nimport sys\n"]

# First digits, of seed 3, repeat 1, random tokens below 97: results of different versions can be paired.
KNOWN_HASHES = {
    "closed_loop": "6fb4d5b26b9f7f12",
    "code_completion": "a1a73e041e7ce21d",
    "long_document": "cc979a555d1e53b7",
    "poisson": "f9b0fbbbbd191cf9",
    "prose": "a1a73e041e7ce21d",
    "shared_prefix": "910222cd3dcf20c1",
    "code_completion concurrency=null request_rate_rps=3": "3b9de76b1e8b2cde",
    "poisson num_requests=3000 min_prompt_tokens=1 max_prompt_tokens=3": "0301f5eb7d9b97c6",
    "shared_prefix num_requests=3000 prefix_tokens=2 num_prefixes=7 max_suffix_tokens=16": "8edd3f2d44ac9e45",
}


def _make_items(workload: str, *overrides: str, seed: int = 0, repeat: int = 0) -> list[WorkloadItem]:
    return list(make_load(f"workload={workload}", *overrides, seed=seed, repeat=repeat))


@pytest.mark.parametrize(("words", "sha256"), KNOWN_HASHES.items(), ids=list(KNOWN_HASHES))
def test_a_seed_means_today_what_it_meant(words: str, sha256: str) -> None:
    workload, *changes = words.split()
    load = make_load(f"workload={workload}", *(f"workload.{change}" for change in changes), seed=3, repeat=1)
    assert workload_sha256(load) == load.sha256
    assert load.sha256.startswith(sha256)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_same_repeat_is_the_same_workload_and_another_is_not(workload: str) -> None:
    first, again = _make_items(workload, repeat=1), _make_items(workload, repeat=1)
    assert workload_sha256(first) == workload_sha256(again)
    others = [_make_items(workload, repeat=2), _make_items(workload, seed=1, repeat=1)]
    assert len({workload_sha256(items) for items in (first, *others)}) == 3


def test_the_engines_parts_do_not_change_the_workload() -> None:
    items = _make_items("closed_loop")
    assert workload_sha256(items) == workload_sha256(_make_items("closed_loop", "scheduler=static", "cache=fifo"))


def test_a_stream_of_its_own_for_each_question() -> None:
    closed, opened = _make_items("closed_loop", "workload.num_requests=64"), _make_items("poisson")
    assert [i.prompt_token_ids for i in closed] == [i.prompt_token_ids for i in opened]
    assert [i.max_tokens for i in closed] == [i.max_tokens for i in opened]
    assert {i.arrival_s for i in closed} == {None}


def test_shared_prefixes_are_shared_and_suffixes_are_not() -> None:
    items = _make_items("shared_prefix", "workload.num_prefixes=3", "workload.prefix_tokens=40")
    prefixes = {item.client_id: item.prompt_token_ids[:40] for item in items}
    assert len(set(prefixes.values())) == 3
    assert all(item.prompt_token_ids[:40] == prefixes[item.client_id] for item in items)
    assert len({item.prompt_token_ids[40:] for item in items}) == len(items)


def test_every_document_gets_all_its_questions_in_mixed_order() -> None:
    items = _make_items("long_document", "workload.num_documents=3", "workload.questions_per_document=5")
    documents = [item.client_id for item in items]
    assert sorted(documents) == sorted([0, 1, 2] * 5)
    assert documents != sorted(documents)
    assert all(len({i.prompt_token_ids[:1536] for i in items if i.client_id == d}) == 1 for d in range(3))


def test_any_workload_can_come_by_the_clock() -> None:
    items = _make_items("code_completion", "workload.concurrency=null", "workload.request_rate_rps=3")
    times = [item.arrival_s for item in items]
    assert times == sorted(times) and times[0] > 0


def test_warm_up_has_the_shape_of_the_measured_requests_and_none_of_their_prompts() -> None:
    items = _make_items("closed_loop")
    warm = warmup_items(items, 3, 97, Streams.make(seed=0, repeat=0))
    assert [len(w.prompt_token_ids) for w in warm] == [len(i.prompt_token_ids) for i in items[:3]]
    assert not {w.prompt_token_ids for w in warm} & {i.prompt_token_ids for i in items}


def test_text_prompts_have_the_length_asked_for_and_start_like_the_model_expects() -> None:
    source = TextPrompts(TEXT, lambda text: [ord(c) for c in text], first_token_id=1)
    tokens = source.tokens(60, np.random.default_rng(0))
    assert len(tokens) == 60 and tokens[0] == 1
    assert 1 not in source.tokens(60, np.random.default_rng(0), start=False)


def test_a_completion_ends_where_a_line_begins() -> None:
    source = TextPrompts(TEXT, lambda text: [ord(c) for c in text], first_token_id=1)
    for seed in range(20):
        tokens = source.to_complete(30, np.random.default_rng(seed))
        text = "".join(chr(t) for t in tokens if t != 1)
        assert text.endswith("\n") and len(tokens) <= 30
        if tokens[0] == 1:
            assert any(document.startswith(text) for document in TEXT)
        else:
            assert any(text in document for document in TEXT)


FILE = '''"""Module docstring that has ten words of plain prose in it, and more.

Usage:  prog [-x] <file>

A second paragraph of it, which says some more about nothing at all.
"""
text = """a string that is no docstring and has more than ten words in it too"""
x = 'it is # no comment'  # nor is this comment with more than ten words counted as a block here
def f():
    # A block of comments over two lines, with more than ten words
    # in it altogether.
    return """
    and the end of this string does not begin another one, however many words there are
    """
'''


def test_prose_is_paragraphs_of_docstrings_and_comments() -> None:
    assert paragraphs(FILE) == [
        "Module docstring that has ten words of plain prose in it, and more.",
        "A second paragraph of it, which says some more about nothing at all.",
        "A block of comments over two lines, with more than ten words\nin it altogether.",
    ]
    assert paragraphs("") == paragraphs("x = 1\n# Few words.\n") == []


def test_a_prose_prompt_ends_within_a_paragraph_and_begins_like_a_docstring() -> None:
    source = TextPrompts([FILE, "x = 1\n"], lambda text: [ord(c) for c in text], first_token_id=1)
    whole = "\n\n".join(paragraphs(FILE))
    seen = set()
    for seed in range(60):
        tokens = source.prose_to_complete(400, np.random.default_rng(seed))
        text = "".join(map(chr, tokens[1:]))
        assert tokens[0] == 1 and text.startswith('"""')
        rest = whole.removeprefix(text.removeprefix('"""'))
        # Words are whole, and the paragraph goes on.
        assert rest != whole and rest[0].isspace() and not rest.startswith("\n\n")
        seen.add(text)
        short = source.prose_to_complete(20, np.random.default_rng(seed))
        assert len(short) <= 20 and tokens[-10:] == short[-10:]
    assert len(seen) > 20


def test_text_without_prose_is_refused() -> None:
    with pytest.raises(ValueError, match=r"workload\.prompts: .*workload=code_completion"):
        TextPrompts(["x = 1\n"], lambda text: [0]).prose_to_complete(9, np.random.default_rng(0))


def test_documents_are_read_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"path": str(i), "text": t}) + "\n" for i, t in enumerate([*TEXT, " "])))
    assert read_documents(str(path)) == TEXT
    path.write_text('{"path": "a"}\n')
    with pytest.raises(ValueError, match=r"workload\.prompts=.*line 1"):
        read_documents(str(path))
    with pytest.raises(ValueError, match=r"workload\.prompts=.*cannot be read"):
        read_documents(str(tmp_path / "absent.jsonl"))


@pytest.mark.parametrize(
    ("workload", "override", "says"),
    [
        ("closed_loop", "workload.max_output_tokens=0", "workload.max_output_tokens=0"),
        ("closed_loop", "workload.min_prompt_tokens=300", "at least workload.min_prompt_tokens=300"),
        ("closed_loop", "workload.concurrency=0", "workload.concurrency=0"),
        ("closed_loop", "workload.concurrency=null", "workload.concurrency=None"),
        ("poisson", "workload.request_rate_rps=0", "workload.request_rate_rps=0"),
        ("shared_prefix", "workload.request_rate_rps=2", "workload.concurrency=16"),
        ("code_completion", "workload.max_tokens=0", "workload.max_tokens=0"),
        ("long_document", "workload.num_documents=1.5", "workload.num_documents=1.5"),
    ],
)
def test_an_impossible_workload_is_refused(workload: str, override: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        _make_items(workload, override)
    assert says in str(caught.value)
