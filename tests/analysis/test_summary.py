from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import analysis


def test_means_spreads_and_intervals_are_the_hand_computed_ones(ablation: analysis.Sweep) -> None:
    points = analysis.points(ablation).set_index("label")
    base = points.loc["baseline"]
    # Throughputs 100 and 110: mean 105, standard error 5, t(0.975, 1) = 12.7062.
    assert base["num_repeats"] == 2
    assert base["output_throughput_tps"] == 105
    assert (base["output_throughput_tps_min"], base["output_throughput_tps_max"]) == (100, 110)
    assert base["output_throughput_tps_low"] == pytest.approx(105 - 5 * 12.7062, abs=1e-3)
    assert base["output_throughput_tps_high"] == pytest.approx(105 + 5 * 12.7062, abs=1e-3)
    assert base["num_preemptions"] == 0.5


def test_a_single_repeat_has_no_interval(ablation: analysis.Sweep) -> None:
    static = analysis.points(ablation).set_index("label").loc["static_batching"]
    assert (static["num_repeats"], static["num_failed"]) == (1, 1)
    assert static["output_throughput_tps"] == 50
    assert np.isnan(static["output_throughput_tps_low"])


def test_percentiles_pool_the_requests_of_all_repeats_without_warmup(ablation: analysis.Sweep) -> None:
    points = analysis.points(ablation).set_index("label")
    # Both repeats hold TTFTs of 10, 20, ..., 100 ms.
    assert points.loc["baseline", "ttft_p50_s"] == pytest.approx(0.055)
    assert points.loc["baseline", "ttft_p99_s"] == pytest.approx(
        np.quantile(np.repeat(np.arange(1, 11) / 100, 2), 0.99)
    )
    # One repeat: the run's own figure.
    assert points.loc["static_batching", "ttft_p99_s"] == pytest.approx(0.2)


def test_speedups_compare_the_repeats_that_both_points_finished(ablation: analysis.Sweep) -> None:
    points = analysis.points(ablation).set_index("label")
    assert points["is_baseline"].tolist() == [True, False, False]
    assert points.loc["baseline", "speedup"] == 1
    assert points.loc["no_prefix_cache", "speedup"] == pytest.approx(85 / 105)
    assert points.loc["no_prefix_cache", "speedup_min"] == pytest.approx(80 / 100)
    assert points.loc["no_prefix_cache", "speedup_max"] == pytest.approx(90 / 110)
    # Only repeat 0 finished here, so only the baseline's repeat 0 counts.
    assert points.loc["static_batching", "speedup"] == pytest.approx(50 / 100)


def test_without_variants_the_first_point_is_the_baseline(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    sweep = analysis.load(make_sweep(tmp_path / "sweep", [{"size": 1, "tps": 40}, {"size": 2, "tps": 80}]))
    points = analysis.points(sweep)
    assert points["is_baseline"].tolist() == [True, False]
    assert points["speedup"].tolist() == [1, 2]


def test_each_setting_of_another_axis_has_its_own_baseline(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    configs = [(variant, rate) for rate in (1, 2) for variant in ("slow", "baseline")]
    points = [{"variant": v, "workload.rate": r, "tps": 10 * r * (2 if v == "baseline" else 1)} for v, r in configs]
    made = analysis.points(analysis.load(make_sweep(tmp_path / "sweep", points)))
    assert made["label"].tolist() == ["slow, rate=1", "baseline, rate=1", "slow, rate=2", "baseline, rate=2"]
    assert made["speedup"].tolist() == [0.5, 1, 0.5, 1]
    assert made["is_baseline"].tolist() == [False, True, False, True]


def test_no_speedups_where_the_baseline_failed(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}], failed={(0, 0): "crashed"})
    points = analysis.points(analysis.load(folder))
    assert points["speedup"].isna().all()
    assert points["num_repeats"].tolist() == [0, 1]


def test_points_are_in_the_order_in_which_they_ran(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    sweep = analysis.load(make_sweep(tmp_path / "sweep", [{"size": size} for size in (9, 3, 7)], repeats=2))
    assert analysis.points(sweep)["order_index"].tolist() == [0, 1, 2]
    assert analysis.points(sweep)["label"].tolist() == ["size=9", "size=3", "size=7"]


def test_failures_are_listed_apart_with_the_first_line_of_the_reason(ablation: analysis.Sweep) -> None:
    row = analysis.failures(ablation).iloc[0]
    assert (row["label"], row["repeat"], row["status"]) == ("static_batching", 1, "timeout")
    assert row["reason"] == "ValueError: scheduler.alpha=-1: must be 0 or more"


def test_null_metrics_stay_null(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = analysis.points(analysis.load(make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}], metrics=False)))
    assert points["num_repeats"].tolist() == [1, 1]
    assert points[["output_throughput_tps", "ttft_p50_s", "num_preemptions", "speedup"]].isna().all().all()
