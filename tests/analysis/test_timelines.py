from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis
from analysis.metrics import METRICS
from analysis.page import timelines as module
from analysis.page.timelines import MAX_DRAWN, remarks, timelines

MANY = [{"size": size, "tps": 100 + (7 * size) % 40} for size in range(30)]


def _drawn(folder: Path, **options: Any) -> list[str]:
    sweep = analysis.load(folder)
    spec = timelines(sweep, analysis.points(sweep), **options)
    assert spec is not None
    return [point["name"] for point in spec["points"] if point["on"]]


def _rewrite(folder: Path, table: str, run_id: str, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / table / f"{run_id}.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | change(i, row) for i, row in enumerate(rows)]), path)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, make_sweep: Callable[..., Path]) -> Path:
    """Thirty points, of which the fifth lost a repeat."""
    return make_sweep(
        tmp_path_factory.mktemp("many") / "sweep", MANY, repeats=2, num_requests=2, failed={(5, 1): "error"}
    )


def test_of_many_points_the_baseline_the_best_the_worst_and_the_doubtful_are_drawn(many: Path) -> None:
    tps = [point["tps"] for point in MANY]
    expected = {0, tps.index(max(tps)), tps.index(min(tps)), 5}
    assert set(_drawn(many)) == {f"size={i}" for i in expected}


def test_best_and_worst_follow_the_metric(many: Path) -> None:
    ttft = next(metric for metric in METRICS if metric.column == "ttft_p50_s")
    sweep = analysis.load(many)
    said = remarks(sweep, analysis.points(sweep), ttft)
    fastest = max(range(30), key=lambda i: MANY[i]["tps"])
    assert "best TTFT p50" in said[f"size={fastest}"]
    assert said["size=5"].endswith("1 of 2 repeats failed")


def test_all_points_are_there_to_choose_from(many: Path) -> None:
    sweep = analysis.load(many)
    spec = timelines(sweep, analysis.points(sweep))
    assert spec is not None
    assert [point["name"] for point in spec["points"]] == [f"size={i}" for i in range(30)]
    for point in spec["points"]:
        for panel in point["panels"]:
            assert all(len(one["y"]) == len(point["x"]) > 1 for one in panel["series"])


def test_beyond_what_a_list_holds_those_worth_a_look_stay(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHOICE", 8)
    sweep = analysis.load(many)
    spec = timelines(sweep, analysis.points(sweep))
    assert spec is not None
    assert len(spec["points"]) <= 8
    assert {"size=0", "size=5"} <= {point["name"] for point in spec["points"]}
    assert {point["name"] for point in spec["points"] if point["on"]} == set(_drawn(many))


def test_a_sweep_of_few_points_is_drawn_whole(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", MANY[:MAX_DRAWN])
    assert len(_drawn(folder)) == MAX_DRAWN


def test_no_more_are_drawn_than_there_is_room_for(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    failed = {(place, 1): "error" for place in range(2, 20)}
    folder = make_sweep(tmp_path / "sweep", MANY[:20], repeats=2, num_requests=2, failed=failed)
    drawn = _drawn(folder)
    assert len(drawn) == MAX_DRAWN and "size=0" in drawn


def test_a_saturated_point_is_said_to_be_so_and_no_other(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [{"workload.rate_rps": rate, "tps": 100 + rate} for rate in range(1, 9)]
    folder = make_sweep(tmp_path / "sweep", points, num_requests=30)
    for place in range(8):
        _rewrite(
            folder,
            "requests",
            f"{place:012x}-r0",
            lambda i, row, place=place: {"ttft_s": 0.01 * (1 + i) if place == 6 else 0.01},  # type: ignore[misc]
        )
    sweep = analysis.load(folder)
    said = remarks(sweep, analysis.points(sweep))
    assert [label for label, why in said.items() if "saturated" in why] == ["rate_rps=7"]
    assert "rate_rps=7" in _drawn(folder)


def _long_runs(folder: Path, make_sweep: Callable[..., Path], points: Sequence[dict[str, Any]], num_steps: int) -> Path:
    make_sweep(folder, points, num_requests=1)
    for place in range(len(points)):
        run_id = f"{place:012x}-r0"
        rows = [
            {
                **{"run_id": run_id, "step": i, "start_s": 0.013 * i, "kv_blocks_used": 99 if i == 777 else i % 7},
                **{"num_running": i % 5, "num_waiting": i % 3, "num_prefill_tokens": i % 64, "num_decode_tokens": 8},
                **{"process_bytes": 2**30 + 4096 * i, "kv_blocks_cached": i % 9, "kv_fragmentation_fraction": 0.01},
            }
            for i in range(num_steps)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "steps" / f"{run_id}.parquet")
    return folder


def test_long_runs_are_thinned_to_a_page_that_opens_and_keep_their_peaks(
    tmp_path: Path, make_sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUDGET", 30_000)
    folder = _long_runs(tmp_path / "sweep", make_sweep, MANY, 1500)
    sweep = analysis.load(folder)
    spec = timelines(sweep, analysis.points(sweep))
    assert spec is not None
    assert spec["num_steps"] == 1500
    sizes = {len(point["x"]) for point in spec["points"]}
    assert max(sizes) <= 30_000 // (30 * 9) and min(sizes) >= 60
    assert len(json.dumps(spec, separators=(",", ":"))) < 30_000 * 8
    for point in spec["points"]:
        used = next(one for one in point["panels"][0]["series"] if one["name"] == "used")
        assert max(used["y"]) == 99
        assert point["x"][0] == 0 and point["x"] == sorted(point["x"])


def test_runs_without_steps_have_no_plot(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    sweep = analysis.load(make_sweep(tmp_path / "sweep", MANY[:3], details=False))
    assert timelines(sweep, analysis.points(sweep)) is None
