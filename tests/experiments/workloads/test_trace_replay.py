"""Replay: the requests of a trace, at its times, in its lengths, with the prefixes that it names and no others."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulating import simulated_llm

from experiments.workloads.base import Streams, WorkloadItem
from experiments.workloads.prompts import LengthsOnly, RandomTokens, TextPrompts
from experiments.workloads.trace_replay import TraceReplay
from experiments.workloads.traces.describe import describe
from experiments.workloads.traces.formats import read_trace
from minivllm import SamplingParams

MOONCAKE = "experiments/assets/traces/synthetic_mooncake.jsonl"
BURST = "experiments/assets/traces/synthetic_burstgpt_1.csv"
BLOCK = 4
# So many that no two tokens are equal by chance.
RANDOM = RandomTokens(2**62)


def _items(replay: TraceReplay, repeat: int = 0, source: RandomTokens | TextPrompts = RANDOM) -> list[WorkloadItem]:
    return list(replay.items(Streams.make(seed=0, repeat=repeat), source))


def _write(folder: Path, entries: Sequence[dict]) -> str:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def _entry(**more: object) -> dict:
    return {"arrival_s": 0.0, "num_output_tokens": 2} | more


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


def test_a_replay_is_the_trace_from_its_first_request_on() -> None:
    rows, items = list(read_trace(TraceReplay(path=MOONCAKE)._file)), _items(TraceReplay(path=MOONCAKE, time_scale=2))
    assert [item.arrival_s for item in items] == [(row.arrival_s - rows[0].arrival_s) / 2 for row in rows]
    assert [len(item.prompt_token_ids) for item in items] == [row.num_prompt_tokens for row in rows]
    assert [item.max_tokens for item in items] == [row.num_output_tokens for row in rows]
    assert {item.arrival_s for item in _items(TraceReplay(path=MOONCAKE, concurrency=3))} == {None}


def test_a_replay_repeats_itself_and_another_repeat_has_other_prompts() -> None:
    replay = TraceReplay(path=MOONCAKE)
    first, again, other = _items(replay), _items(replay), _items(replay, repeat=1)
    assert first == again
    assert all(a.prompt_token_ids != b.prompt_token_ids for a, b in zip(first, other, strict=True))
    assert [i.arrival_s for i in first] == [i.arrival_s for i in other]


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(
        st.lists(st.integers(0, 2), max_size=4).flatmap(
            lambda ids: st.tuples(st.just(ids), st.integers(max(1, (len(ids) - 1) * BLOCK + 1), 19))
        ),
        min_size=2,
        max_size=7,
    ),
    limit=st.sampled_from([None, 1, 5, 9]),
    source=st.sampled_from([RANDOM, LengthsOnly(2**62)]),
)
def test_two_prompts_share_exactly_the_blocks_whose_ids_agree_from_the_start(
    folder: Path, prompts: list[tuple[list[int], int]], limit: int | None, source: RandomTokens
) -> None:
    path = _write(folder, [_entry(num_prompt_tokens=length, hash_ids=ids) for ids, length in prompts])
    replay = TraceReplay(path=path, hash_block_tokens=BLOCK, max_prompt_tokens=limit, too_long="clip")
    tokens = [item.prompt_token_ids for item in _items(replay, source=source)]
    lengths = [min(length, limit or length) for _, length in prompts]
    assert list(map(len, tokens)) == lengths
    for i in range(len(prompts)):
        for j in range(i):
            agreed = _shared(prompts[i][0], prompts[j][0]) * BLOCK
            assert _shared(tokens[i], tokens[j]) == min(agreed, lengths[i], lengths[j])
            # The same id is the same block wherever it stands.
            for a, b in ((a, b) for a in range(4) for b in range(4)):
                if prompts[i][0][a : a + 1] == prompts[j][0][b : b + 1] != []:
                    ends = (min(lengths[i] - a * BLOCK, BLOCK), min(lengths[j] - b * BLOCK, BLOCK))
                    size = max(0, min(ends))
                    assert tokens[i][a * BLOCK : a * BLOCK + size] == tokens[j][b * BLOCK : b * BLOCK + size]


def test_an_engine_gives_every_length_and_its_cache_hits_what_the_trace_repeats() -> None:
    replay, llm = TraceReplay(path=MOONCAKE), simulated_llm()
    rows = list(read_trace(replay._file))
    outputs = [
        llm.generate(
            {"prompt_token_ids": list(item.prompt_token_ids)},
            SamplingParams(temperature=0, max_tokens=item.max_tokens, ignore_eos=True),
        )[0]
        for item in _items(replay, source=RandomTokens(300))
    ]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [row.num_output_tokens for row in rows]
    num_prompt_tokens = sum(row.num_prompt_tokens or 0 for row in rows)
    hit = sum(output.num_cached_tokens for output in outputs) / num_prompt_tokens
    assert hit == pytest.approx(describe(rows).repeated_prefix_fraction, abs=1e-9)


def test_a_prompt_does_not_depend_on_which_blocks_were_asked_for_before() -> None:
    whole = _items(TraceReplay(path=MOONCAKE))
    later = _items(TraceReplay(path=MOONCAKE, start_s=6.0))
    assert 0 < len(later) < len(whole)
    assert [i.prompt_token_ids for i in later] == [i.prompt_token_ids for i in whole[-len(later) :]]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12),
    start=st.integers(0, 12),
    duration=st.none() | st.integers(1, 20),
    count=st.none() | st.integers(1, 6),
    limits=st.tuples(st.none() | st.integers(1, 9), st.none() | st.integers(1, 9)),
    too_long=st.sampled_from(["skip", "clip"]),
    failed=st.sampled_from(["drop", "keep"]),
    scale=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_a_part_of_a_trace_is_what_its_words_say(
    folder: Path,
    rows: list[tuple[int, int, int]],
    start: int,
    duration: int | None,
    count: int | None,
    limits: tuple[int | None, int | None],
    too_long: str,
    failed: str,
    scale: float,
) -> None:
    times = 1000 + np.cumsum([gap for gap, _, _ in rows])
    path = _write(
        folder,
        [
            {"arrival_s": float(at), "num_prompt_tokens": prompt, "num_output_tokens": output}
            for at, (_, prompt, output) in zip(times, rows, strict=True)
        ],
    )
    longest = [limit or 99 for limit in limits]
    expected = []
    for at, (_, *lengths) in zip((times - times[0]).tolist(), rows, strict=True):
        if not start <= at < start + (duration or 999) or (failed == "drop" and 0 in lengths):
            continue
        lengths = [max(1, length) for length in lengths]
        if too_long == "skip" and any(length > most for length, most in zip(lengths, longest, strict=True)):
            continue
        expected.append(((at - start) / scale, *map(min, lengths, longest)))
    expected = expected[:count]
    replay = TraceReplay(
        path=path,
        time_scale=scale,
        start_s=start,
        duration_s=duration,
        max_requests=count,
        max_prompt_tokens=limits[0],
        max_output_tokens=limits[1],
        too_long=too_long,
        failed=failed,
    )
    assert replay.num_requests == len(expected)
    if expected:
        assert [(i.arrival_s, len(i.prompt_token_ids), i.max_tokens) for i in _items(replay)] == expected
    else:
        with pytest.raises(ValueError, match="no request is left"):
            _items(replay)


def test_failed_requests_are_dropped_or_sent_for_a_token() -> None:
    dropped, kept = _items(TraceReplay(path=BURST)), _items(TraceReplay(path=BURST, failed="keep"))
    assert (len(dropped), len(kept)) == (16, 18)
    assert [kept[i].max_tokens for i in (4, 11)] == [1, 1] and len(kept[11].prompt_token_ids) == 1


def test_prompts_of_a_session_begin_alike_where_asked(tmp_path: Path) -> None:
    sessions = [("a", 6), ("b", 6), ("a", 11), (None, 11), ("a", 9)]
    path = _write(tmp_path, [_entry(num_prompt_tokens=length, session=name) for name, length in sessions])
    for asked in (True, False):
        replay = TraceReplay(path=path, hash_block_tokens=BLOCK, sessions_share_prefixes=asked)
        tokens = [item.prompt_token_ids for item in _items(replay)]
        assert [len(t) for t in tokens] == [length for _, length in sessions]
        shared = {(i, j): _shared(tokens[i], tokens[j]) for i in range(5) for j in range(i)}
        alike = {(2, 0): 6, (4, 0): 6, (4, 2): 9} if asked else {}
        assert {pair: size for pair, size in shared.items() if size} == alike


def test_a_made_up_prompt_begins_like_text_does_and_nothing_else_in_it(tmp_path: Path) -> None:
    shapes = [{"hash_ids": [1, 2]}, {"hash_ids": [1]}, {"hash_ids": []}, {"session": "a"}, {}]
    path = _write(tmp_path, [_entry(num_prompt_tokens=2 * BLOCK) | shape for shape in shapes])
    source = TextPrompts(["x = 1\n"], lambda text: [ord(c) for c in text], first_token_id=1)
    replay = TraceReplay(path=path, hash_block_tokens=BLOCK, sessions_share_prefixes=True)
    prompts = [item.prompt_token_ids for item in _items(replay, source=source)]
    assert [len(prompt) for prompt in prompts] == [2 * BLOCK] * 5
    assert all(prompt[0] == 1 and 1 not in prompt[1:] for prompt in prompts)


def test_what_a_trace_says_is_sent_as_it_is(tmp_path: Path) -> None:
    given = [_entry(prompt_token_ids=[5, 3, 9]), _entry(prompt="ab c", client_id=4, priority=-2)]
    path = _write(tmp_path, given)
    source = TextPrompts(["x = 1\n"], lambda text: [ord(c) for c in text], first_token_id=1)
    items = _items(TraceReplay(path=path, prompts="heldout"), source=source)
    assert [i.prompt_token_ids for i in items] == [(5, 3, 9), (1, *map(ord, "ab c"))]
    assert (items[1].client_id, items[1].priority) == (4, -2)
    clipped = _items(TraceReplay(path=path, max_prompt_tokens=2, too_long="clip"), source=source)
    assert [i.prompt_token_ids for i in clipped] == [(5, 3), (1, ord("a"))]
    left = TraceReplay(path=path, max_prompt_tokens=4, too_long="skip")
    assert len(_items(left, source=source)) == 1 <= left.num_requests
    with pytest.raises(ValueError, match=r"line 2: prompt tokens=5: must be at most workload\.max_prompt_tokens=4"):
        _items(TraceReplay(path=path, max_prompt_tokens=4), source=source)
    with pytest.raises(ValueError, match=r"workload\.prompts='random': must be one that has a tokenizer"):
        _items(TraceReplay(path=path))


@pytest.mark.parametrize(
    ("entry", "options", "says"),
    [
        ({"num_prompt_tokens": 9}, {"max_prompt_tokens": 8}, "line 1: prompt tokens=9: must be at most workload.max_p"),
        ({"num_prompt_tokens": 9}, {"max_output_tokens": 1}, "line 1: output tokens=2: must be at most workload.max_o"),
        (
            {"num_prompt_tokens": 9, "hash_ids": [1, 2, 3]},
            {"hash_block_tokens": 8},
            "hash_ids=(1, 2, 3): must be at mo",
        ),
        ({"num_prompt_tokens": 9}, {"start_s": 1}, "no request is left"),
    ],
)
def test_a_trace_that_cannot_be_sent_is_refused(tmp_path: Path, entry: dict, options: dict, says: str) -> None:
    replay = TraceReplay(path=_write(tmp_path, [_entry(**entry)]), **options)
    with pytest.raises(ValueError) as caught:
        _items(replay)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("path", ""), ("format", 3), ("prompts", None), ("time_scale", 0), ("time_scale", float("inf"))),
        *(("start_s", -1), ("duration_s", 0), ("max_requests", 0), ("max_prompt_tokens", 1.5)),
        *(("max_output_tokens", True), ("too_long", "cut"), ("failed", "retry"), ("hash_block_tokens", None)),
        *(("sessions_share_prefixes", 1), ("concurrency", 0)),
    ],
)
def test_an_impossible_replay_is_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^workload\.{option}={value!r}: must be "):
        TraceReplay(**{"path": MOONCAKE, option: value})


def test_requests_are_made_one_by_one(tmp_path: Path) -> None:
    count, path = 4_000, tmp_path / "long.csv"
    with path.open("w") as file:
        file.write("arrival_s,num_prompt_tokens,num_output_tokens\n")
        file.writelines(f"{i},60,3\n" for i in range(count))
    replay = TraceReplay(path=str(path))
    stream = iter(replay.items(Streams.make(seed=0, repeat=0), RANDOM))
    first = next(stream)
    tracemalloc.start()
    try:
        num_tokens = sum(len(item.prompt_token_ids) for item in stream)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_tokens == 60 * (count - 1) and dataclasses.replace(first, arrival_s=0.0) == first
    # All prompts have 2 MB and more.
    assert peak_bytes < 300_000
