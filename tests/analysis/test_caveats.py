"""Checks of drift, contamination and repeats by need, on tables whose truth is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.caveats import caveats, contamination, drift, saturation
from analysis.columns import TABLES
from analysis.load import Sweep
from analysis.summary import points


def _make_runs(
    rng: np.random.Generator, *, num_points: int, num_repeats: int, per_run: float, rotated: bool = True
) -> pd.DataFrame:
    """Runs of points that differ by a lot, with workloads that differ by 5 %, noise of 1 %, and a drift a run."""
    repeat_effect = rng.normal(0, 0.05, num_repeats)
    rows = []
    for repeat in range(num_repeats):
        for place in range(num_points):
            point = (place + repeat * rotated) % num_points
            order = len(rows)
            log = 5 + 0.5 * point + repeat_effect[repeat] + per_run * order + rng.normal(0, 0.01)
            rows.append(
                {
                    "sweep": "s",
                    "run_id": f"{point}-r{repeat}",
                    "point_id": f"{point}",
                    "repeat": repeat,
                    "order_index": order,
                    "status": "ok",
                    "output_throughput_tps": float(np.exp(log)),
                }
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("rotated", [True, False], ids=["rotated", "as_given"])
def test_a_sweep_without_drift_is_called_drifting_no_more_often_than_it_should(rotated: bool) -> None:
    rng = np.random.default_rng(0)
    alarms = sum(
        bool(drift(_make_runs(rng, num_points=4, num_repeats=6, per_run=0, rotated=rotated))) for _ in range(400)
    )
    # 5 % of 400 is 20, with a standard deviation of 4.4; workloads that differ by 5 % must not count as drift.
    assert alarms <= 33


@pytest.mark.parametrize(("num_points", "num_repeats"), [(4, 3), (2, 10), (8, 5)], ids=lambda value: str(value))
def test_a_drift_of_one_percent_a_run_is_found_although_workloads_differ_by_more(
    num_points: int, num_repeats: int
) -> None:
    rng = np.random.default_rng(1)
    sweeps = [_make_runs(rng, num_points=num_points, num_repeats=num_repeats, per_run=-0.01) for _ in range(40)]
    found = [line for runs in sweeps for line in drift(runs)]
    of_all = [line for line in found if line.startswith("Drift: Output changed by -")]
    assert len(of_all) >= 36
    # Of no point alone, but by the false alarms that are allowed: 1 of 40.
    assert len(found) - len(of_all) <= 3


def _slowed(runs: pd.DataFrame, point: str, per_repeat: float) -> pd.DataFrame:
    """One point loses this part in each repeat."""
    factor = np.where(runs["point_id"] == point, np.exp(-per_repeat * runs["repeat"]), 1)
    return runs.assign(output_throughput_tps=runs["output_throughput_tps"] * factor)


@pytest.mark.parametrize("per_run", [0, -0.01], ids=["the others steady", "the machine drifting too"])
@pytest.mark.parametrize(("num_points", "num_repeats"), [(2, 10), (3, 6), (8, 6)], ids=lambda value: str(value))
def test_one_point_that_grows_slower_is_named_and_no_other(num_points: int, num_repeats: int, per_run: float) -> None:
    rng = np.random.default_rng(11)
    named = others = common = 0
    for _ in range(40):
        runs = _make_runs(rng, num_points=num_points, num_repeats=num_repeats, per_run=per_run)
        found = drift(_slowed(runs, "1", 0.05))
        named += sum(
            line.startswith("Drift of one point: 1 changed from its first repeat to its last") for line in found
        )
        others += sum(line.startswith("Drift of one point: 0") for line in found)
        common += sum(line.startswith("Drift: Output") for line in found)
    assert named >= 36 and others <= 3
    # One slow point is not the machine; a drifting machine is found beside it.
    assert common >= 20 if per_run else common <= 4


def test_a_noisy_point_is_not_called_drifting_more_often_than_it_should() -> None:
    rng = np.random.default_rng(12)
    alarms = 0
    for _ in range(100):
        runs = _make_runs(rng, num_points=4, num_repeats=6, per_run=0)
        noise = np.where(runs["point_id"] == "1", rng.normal(0, 0.08, len(runs)), 0)
        alarms += bool(drift(runs.assign(output_throughput_tps=runs["output_throughput_tps"] * np.exp(noise))))
    # 5 % of 100 is 5, with a standard deviation of 2.2.
    assert alarms <= 11


def test_a_point_that_drifts_is_named_by_its_label_with_each_metric_that_shows_it() -> None:
    runs = _make_runs(np.random.default_rng(13), num_points=3, num_repeats=6, per_run=0)
    runs["cfg.cache.block_size"] = runs["point_id"].map({"0": 4, "1": 8, "2": 16})
    runs = _slowed(runs, "1", 0.05)
    runs["ttft_p50_s"] = 10 / runs["output_throughput_tps"]
    sweep = _make_sweep(runs, [])
    (line,) = [line for line in caveats(sweep, points(sweep)) if line.startswith("Drift")]
    assert line.startswith("Drift of one point: block_size=8 changed from its first repeat to its last")
    assert "Output -2" in line and "TTFT p50 +2" in line and "its mean depends" in line.lower()


def test_a_point_with_more_repeats_than_the_others_is_judged_by_those_they_share() -> None:
    runs = _slowed(_make_runs(np.random.default_rng(14), num_points=3, num_repeats=12, per_run=0), "1", 0.05)
    (line,) = drift(runs[(runs["point_id"] == "1") | (runs["repeat"] < 6)])
    # exp(-0.05 * 5) - 1 is -22 %, of the six that they share.
    assert line.startswith("Drift of one point: 1 changed") and "Output -2" in line


def test_one_point_over_many_repeats_can_drift_too() -> None:
    runs = _make_runs(np.random.default_rng(2), num_points=1, num_repeats=24, per_run=0.03)
    (line,) = drift(runs)
    assert "Output changed by +" in line


def test_too_few_runs_say_nothing_of_drift() -> None:
    rng = np.random.default_rng(3)
    for num_points, num_repeats in ((1, 1), (5, 1), (1, 3), (2, 2)):
        runs = _make_runs(rng, num_points=num_points, num_repeats=num_repeats, per_run=-0.1)
        assert drift(runs) == []
    assert drift(runs.assign(output_throughput_tps=None)) == []
    assert drift(runs.iloc[:0]) == []


def test_equal_figures_are_no_drift() -> None:
    runs = _make_runs(np.random.default_rng(4), num_points=3, num_repeats=5, per_run=0)
    assert drift(runs.assign(output_throughput_tps=100.0)) == []


def _make_sweep(runs: pd.DataFrame, requests: list[dict[str, Any]]) -> Sweep:
    tables = {}
    for name, rows in (("runs", runs), ("requests", pd.DataFrame(requests)), ("steps", None), ("quality", None)):
        frame = pd.DataFrame() if rows is None else rows
        tables[name] = frame.reindex(columns=[*TABLES[name], *(c for c in frame.columns if c not in TABLES[name])])
        tables[name]["sweep"] = "s"
    return Sweep(folders=(), configs={}, warnings=(), **tables)


def _make_requests(run_id: str, prompts: str, warm: str, hits: dict[int, int]) -> list[dict[str, Any]]:
    """One request a letter; two are scheduled at a time. `hits` are cached tokens by index."""
    rows = [{"warmup": True, "prompt_sha256": p, "num_cached_tokens": 0, "first_scheduled_s": -1.0} for p in warm]
    rows += [
        {"warmup": False, "prompt_sha256": p, "num_cached_tokens": hits.get(i, 0), "first_scheduled_s": float(i // 2)}
        for i, p in enumerate(prompts)
    ]
    return [{"run_id": run_id, "request_id": i, **row} for i, row in enumerate(rows)]


def test_only_hits_that_nothing_measured_explains_are_contamination() -> None:
    runs = _make_runs(np.random.default_rng(5), num_points=2, num_repeats=1, per_run=0)
    explained = _make_requests("0-r0", "abcd", "xy", {2: 16, 3: 16})
    assert contamination(_make_sweep(runs, explained)) == []
    second = _make_requests("1-r0", "abcd", "xy", {1: 16})
    (line,) = contamination(_make_sweep(runs, [*explained, *second]))
    assert "1 requests of a measurement's first step found 16 prompt tokens" in line
    assert "in 1 of 2 runs (1-r0)" in line


def test_a_prompt_in_the_warm_up_of_another_run_is_no_contamination() -> None:
    runs = _make_runs(np.random.default_rng(6), num_points=2, num_repeats=1, per_run=0)
    crossed = [*_make_requests("0-r0", "ab", "cd", {}), *_make_requests("1-r0", "cd", "ab", {})]
    assert contamination(_make_sweep(runs, crossed)) == []
    (line,) = contamination(_make_sweep(runs, [*crossed, *_make_requests("1-r0", "zz", "z", {})]))
    assert "the warm-up had 2 of the measured prompts too" in line


def test_tables_without_prompt_hashes_are_read_without_a_word() -> None:
    runs = _make_runs(np.random.default_rng(7), num_points=1, num_repeats=1, per_run=0)
    old = [{k: v for k, v in row.items() if k != "prompt_sha256"} for row in _make_requests("0-r0", "ab", "a", {})]
    assert contamination(_make_sweep(runs, old)) == []
    assert contamination(_make_sweep(runs, [])) == []


def test_repeats_by_need_are_said_and_points_that_ran_out_are_counted() -> None:
    runs = _make_runs(np.random.default_rng(8), num_points=2, num_repeats=4, per_run=0)
    runs.loc[runs["point_id"] == "1", "output_throughput_tps"] = [100.0, 150.0, 90.0, 200.0]
    runs["design.repeat_metric"], runs["design.relative_half_width"] = "output_throughput_tps", 0.2
    runs["design.max_repeats"] = 4
    sweep = _make_sweep(runs, [])
    said = caveats(sweep, points(sweep))
    assert any("within ±0.2 of its mean" in line for line in said)
    assert "1 point had all repeats allowed and were still wider than that." in said


def test_a_gpu_that_grows_warm_and_slow_is_named() -> None:
    runs = _make_runs(np.random.default_rng(9), num_points=2, num_repeats=1, per_run=0)
    runs["env.gpu_temperature_start_c"], runs["env.gpu_temperature_end_c"] = [40, 60], [58, 71]
    runs["env.gpu_clock_end_mhz"] = [1980, 1700]
    sweep = _make_sweep(runs, [])
    said = "\n".join(caveats(sweep, points(sweep)))
    assert "between 40 and 71 °C" in said and "between 1700 and 1980 MHz" in said
    assert "The environment changed" not in said


def test_kernels_compiled_while_requests_were_measured_are_named() -> None:
    runs = _make_runs(np.random.default_rng(11), num_points=2, num_repeats=1, per_run=0)
    said = {}
    for counts in ([3, 0], [0, 0]):
        runs["num_compilations"] = counts
        sweep = _make_sweep(runs, [])
        said[sum(counts)] = "\n".join(caveats(sweep, points(sweep)))
    assert "3 kernels were compiled while requests were measured, in 1 of 2 runs" in said[3]
    assert "compiled" not in said[0]


def test_more_than_the_peak_is_named() -> None:
    runs = _make_runs(np.random.default_rng(10), num_points=2, num_repeats=1, per_run=0)
    runs["mbu_fraction"], runs["mfu_fraction"] = [1.2, 0.4], [0.5, None]
    sweep = _make_sweep(runs, [])
    said = "\n".join(caveats(sweep, points(sweep)))
    assert "MBU is above 1 in 1 of 2 runs" in said and "MFU is above" not in said


@pytest.mark.parametrize(("grows", "rate", "expected"), [(True, 8.0, True), (False, 8.0, False), (True, None, False)])
def test_waits_that_grow_with_open_loop_arrivals_are_named_saturation(
    tmp_path: Path, make_sweep: Callable[..., Path], grows: bool, rate: float | None, expected: bool
) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1, "workload.request_rate_rps": rate}], num_requests=30)
    sweep = analysis.load(folder)
    # The builder's waits grow with every request.
    requests = sweep.requests if grows else sweep.requests.assign(ttft_s=0.1)
    made = saturation(dataclasses.replace(sweep, requests=requests))
    assert bool(made) == expected
    assert all(line.startswith("Saturation: in 1 of 1 points") for line in made)
