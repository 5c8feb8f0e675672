from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from analysis.intervals import estimate
from analysis.views import on_front

GRID = [
    {"scheduler": scheduler, "cache.block_size": size, "tps": 10 * size + (5 if scheduler == "static" else 0)}
    for scheduler in ("fcfs", "static")
    for size in (8, 16)
]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, make_sweep: Callable[..., Path]) -> analysis.Sweep:
    folder = make_sweep(tmp_path_factory.mktemp("sweeps") / "grid", GRID, repeats=3, failed={(3, 1): "timeout"})
    return analysis.load(folder)


def test_points_have_their_knobs_mean_interval_and_count(grid: analysis.Sweep) -> None:
    made = grid.points("output_throughput_tps")
    head = "sweep point_id label scheduler block_size n mean low high std min max"
    assert list(made.columns) == head.split()
    assert made["n"].tolist() == [3, 3, 3, 2]
    assert made["block_size"].tolist() == [8, 16, 8, 16]
    first = estimate(np.array([80.0, 90, 100]))
    assert made.loc[0, ["mean", "low", "high", "std"]].tolist() == pytest.approx([90, first.low, first.high, 10])
    assert made.attrs["metric"] == "output_throughput_tps"


def test_a_point_that_never_finished_stays_as_a_row_of_nulls(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    made = analysis.load(make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}], failed={(0, 0): "error"})).points()
    assert made["n"].tolist() == [0, 1]
    assert made[["mean", "min", "max"]].isna().all(axis=1).tolist() == [True, False]


def test_a_knob_named_like_a_figure_keeps_its_whole_name(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    made = analysis.load(make_sweep(tmp_path / "sweep", [{"lengths.mean": 1}, {"lengths.mean": 2}])).points()
    assert made["cfg.lengths.mean"].tolist() == [1, 2]
    assert made["mean"].tolist() == [100, 100]


def test_a_pivot_is_the_cross_table_in_the_order_of_the_runs(grid: analysis.Sweep) -> None:
    made = analysis.pivot(grid, rows="scheduler", columns="block_size")
    assert (made.index.tolist(), made.columns.tolist()) == (["fcfs", "static"], [8, 16])
    # The last point's second repeat timed out: 165 and 185.
    assert made.to_numpy().tolist() == [[90, 170], [95, 175]]
    counts = analysis.pivot(grid, "cache.block_size", "scheduler", value="count")
    assert counts.to_numpy().tolist() == [[3, 3], [3, 2]]


def test_a_pivot_names_what_it_does_not_know(grid: analysis.Sweep) -> None:
    for options, says in (
        ({"rows": "sched", "columns": "block_size"}, "rows=sched: 'sched': no such knob; this sweep varies scheduler"),
        ({"rows": "scheduler", "columns": "cfg.scheduler"}, "columns='cfg.scheduler': must be another knob"),
        ({"rows": "scheduler", "columns": "block_size", "value": "mode"}, "value='mode': must be one of mean, median"),
        ({"rows": "scheduler", "columns": "block_size", "metric": "x"}, "metric=x: no such metric"),
    ):
        with pytest.raises(ValueError) as error:
            analysis.pivot(grid, **options)
        assert says in str(error.value)


def test_the_front_follows_the_directions_of_both_metrics(grid: analysis.Sweep) -> None:
    # Throughput up and TTFT down agree here, so one point has both.
    made = analysis.pareto(grid, x="ttft_p50_s")
    assert made["on_front"].tolist() == [True, False, False, False]
    assert made["label"].iloc[0] == "scheduler=static, block_size=16"
    assert made["ttft_p50_s"].is_monotonic_increasing
    turned = analysis.pareto(grid, x="ttft_p50_s", higher_is_better={"ttft_p50_s": True})
    assert turned["on_front"].all()


def test_a_metric_of_no_direction_has_no_front_unless_told(grid: analysis.Sweep) -> None:
    with pytest.raises(ValueError, match="metric=kv_blocks_total: better up or down"):
        analysis.pareto(grid, x="kv_blocks_total")
    made = analysis.pareto(grid, x="kv_blocks_total", higher_is_better={"kv_blocks_total": False})
    assert made["on_front"].sum() == 1


GAINS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25)


@given(GAINS)
@settings(max_examples=200, deadline=None)
def test_a_point_is_on_the_front_just_if_no_other_is_better(rows: list[tuple[int, int]]) -> None:
    front = on_front(np.array(rows, dtype=float))
    assert front.any()
    for (x, y), chosen in zip(rows, front, strict=True):
        assert chosen == (not any(a >= x and b >= y and (a, b) != (x, y) for a, b in rows))


def test_points_that_lack_a_figure_are_on_no_front_and_keep_none_off_it() -> None:
    assert on_front(np.array([[1.0, 1.0], [np.nan, 9.0], [9.0, np.nan]])).tolist() == [True, False, False]
