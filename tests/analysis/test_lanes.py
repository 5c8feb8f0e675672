from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_sweeps import write_policies, write_table

import analysis
from analysis.lanes import MAX_LANES, chosen_runs, lanes_spec

_WAITING, _PREFILL, _DECODE, _PREEMPTED = range(4)


def _load(folder: Path, requests: list[dict[str, Any]], steps: list[dict[str, Any]] | None = None) -> analysis.Sweep:
    run = {"sweep": "one", "run_id": "a-r0", "point_id": "a", "repeat": 0, "order_index": 0, "status": "ok"}
    write_table(folder / "runs" / "a.parquet", [{"schema_version": 6, "kv_blocks_total": 10, **run}])
    write_table(
        folder / "requests" / "a.parquet", [{"run_id": "a-r0", "request_id": i, **r} for i, r in enumerate(requests)]
    )
    if steps:
        write_table(folder / "steps" / "a.parquet", [{"run_id": "a-r0", "step": i, **s} for i, s in enumerate(steps)])
    return analysis.load(folder)


def _request(arrival: float, scheduled: float, token: float, finish: float, **more: Any) -> dict[str, Any]:
    made = {"arrival_s": arrival, "first_scheduled_s": scheduled, "first_token_s": token, "finish_s": finish}
    return {"warmup": False, **made, **more}


def test_a_lane_is_what_its_request_did(tmp_path: Path) -> None:
    gaps = {"preempted_from_s": [1.5, 3.0], "preempted_until_s": [2.0, 4.0]}
    requests = [
        _request(0.0, 1.0, 2.5, 6.0, **gaps),
        _request(0.5, 0.5, 0.7, 0.7),
        _request(-1, -1, -1, -1, warmup=True),
    ]
    spec = analysis.timeline(_load(tmp_path, requests))
    assert spec["lanes"][0] == {
        "id": "0",
        "parts": [
            [_WAITING, 0.0, 1.0],
            [_PREFILL, 1.0, 1.5],
            [_PREEMPTED, 1.5, 2.0],
            [_PREFILL, 2.0, 2.5],
            [_DECODE, 2.5, 3.0],
            [_PREEMPTED, 3.0, 4.0],
            [_DECODE, 4.0, 6.0],
        ],
    }
    assert spec["lanes"][1]["parts"] == [[_PREFILL, 0.5, 0.7]]
    assert (spec["worst"], spec["from"], spec["until"], len(spec["lanes"])) == (0, 0.0, 6.0, 2)


@given(
    num=st.integers(1, 400),
    worst=st.floats(0, 1),
    lanes=st.integers(1, 50),
)
@settings(max_examples=12, deadline=None)
def test_of_many_requests_those_around_the_worst_are_shown(
    tmp_path_factory: pytest.TempPathFactory, num: int, worst: float, lanes: int
) -> None:
    at = min(num - 1, int(worst * num))
    requests = [_request(i, i + 0.25, i + 0.5, i + (100 if i == at else 2)) for i in range(num)]
    spec = analysis.timeline(_load(tmp_path_factory.mktemp("lanes"), requests), lanes=lanes)
    ids = [int(lane["id"]) for lane in spec["lanes"]]
    assert ids == list(range(ids[0], ids[0] + min(num, lanes)))
    assert ids[spec["worst"]] == at
    for lane in spec["lanes"]:
        ends = [spec["from"], *(end for _, *both in lane["parts"] for end in both), spec["until"]]
        assert ends == sorted(ends), "parts follow each other, within the window"
    assert f"request {at}" in spec["note"] or num <= lanes
    # A request that outlives all others does not stretch the window.
    if 1 < lanes < num:
        assert spec["until"] - spec["from"] <= lanes + 2


def test_below_the_lanes_are_the_pool_and_the_queue_at_the_same_time(tmp_path: Path) -> None:
    steps = [
        {"start_s": i - 5, "duration_s": 1.0, "kv_blocks_used": i, "num_running": i % 3, "num_waiting": 1}
        for i in range(11)
    ]
    spec = analysis.timeline(_load(tmp_path, [_request(0.5, 1.0, 2.0, 4.0)], steps))
    kv, queue = spec["panels"]
    assert kv["series"][0]["x"] == [0.5, 1, 2, 3, 4, 4], "the step under way, those within, and the end"
    assert kv["series"][0]["y"] == [50, 60, 70, 80, 90, 90]
    assert [one["name"] for one in queue["series"]] == ["running", "in queue"]


def test_what_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    sweep = _load(tmp_path, [{"warmup": False, "arrival_s": 0.0, "finish_s": 1.0}])
    with pytest.raises(ValueError, match="requests have no instants"):
        analysis.timeline(sweep)
    with pytest.raises(ValueError, match="point=b, repeat=None: no such run finished"):
        analysis.timeline(sweep, "b")
    assert lanes_spec(sweep, chosen_runs(analysis.points(sweep), None)) is None
    with pytest.raises(ValueError, match=r"must end in .svg or .png"):
        analysis.write_timeline({}, tmp_path / "a.pdf")


_CLIP = re.compile(rb"\bp[0-9a-f]{10}\b")


def test_runs_of_ten_to_a_thousand_requests_are_drawn_and_the_same_twice(tmp_path: Path) -> None:
    folder = write_policies(tmp_path / "s", policies=("srpt",), rates=(9,), repeats=2, num_requests=1000)
    sweep = analysis.load(folder)
    requests = sweep.requests
    for num in (10, 1000):
        few = replace(sweep, requests=requests[requests["request_id"] < num])
        spec = analysis.timeline(few, repeat=1)
        assert len(spec["lanes"]) == min(num, MAX_LANES) and spec["note"].startswith(f"repeat 1, {num:,} requests")
        first = analysis.write_timeline(spec, tmp_path / f"{num}.svg").read_bytes()
        again = analysis.write_timeline(spec, tmp_path / "again.svg").read_bytes()
        # matplotlib names clipping paths by where they lie in memory.
        assert _CLIP.sub(b"", first) == _CLIP.sub(b"", again)
        assert b">prefill<" in first and b">preempted<" in first and b">KV used<" in first
    kinds = {kind for lane in spec["lanes"] for kind, *_ in lane["parts"]}
    assert kinds == {_WAITING, _PREFILL, _DECODE, _PREEMPTED}


def test_a_request_that_was_never_finished_or_scheduled_has_no_lane(tmp_path: Path) -> None:
    requests = [_request(0, 1, 2, 3), _request(1, math.nan, math.nan, 5), _request(1, 2, math.nan, 4)]
    spec = analysis.timeline(_load(tmp_path, requests))
    assert [lane["id"] for lane in spec["lanes"]] == ["0", "2"]
    # Ended in its prefill.
    assert spec["lanes"][1]["parts"] == [[_WAITING, 1, 2], [_PREFILL, 2, 4]]


def test_of_policies_one_run_each_is_on_the_page(tmp_path: Path) -> None:
    folder = write_policies(tmp_path / "s", policies=("fcfs", "srpt"), rates=(4, 12), repeats=1, num_requests=12)
    sweep = analysis.load(folder)
    from analysis.scheduling_answer import scheduling_answer

    found = chosen_runs(analysis.points(sweep), scheduling_answer(sweep))
    assert [name for _, name, _ in found] == ["fcfs", "srpt"] and found[0][2].startswith("rate ")
    spec = lanes_spec(sweep, found)
    assert spec is not None and [run["name"] for run in spec["runs"]] == ["fcfs", "srpt"]
