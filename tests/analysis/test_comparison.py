from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from noisy_sweeps import Noise, make_sweep, sweep_of
from scipy import stats

import analysis
from analysis.comparison import COLUMNS

SIZES = [{"size": 1, "tps": 100}, {"size": 2, "tps": 80}, {"size": 4, "tps": 100}]


@pytest.fixture
def sizes(tmp_path: Path, make_sweep: Callable[..., Path]) -> analysis.Sweep:
    return analysis.load(make_sweep(tmp_path / "sizes", SIZES, repeats=4))


def _rewrite(folder: Path, run_id: str, **columns: object) -> None:
    path = folder / "runs" / f"{run_id}.parquet"
    pq.write_table(pa.Table.from_pylist([pq.read_table(path).to_pylist()[0] | columns]), path)


def test_each_other_point_has_a_row_with_the_hand_computed_figures(sizes: analysis.Sweep) -> None:
    made = analysis.compare(sizes, baseline="size=1")
    assert list(made.columns) == COLUMNS
    assert made["label"].tolist() == ["size=2", "size=4"]
    slow, same = made.iloc[0], made.iloc[1]
    logs = np.log(np.array([80, 90, 100, 110]) / np.array([100, 110, 120, 130]))
    low, high = np.exp(stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs)))
    assert (slow["baseline"], slow["num_pairs"], slow["mean"], slow["baseline_mean"]) == ("size=1", 4, 95, 115)
    assert slow["ratio"] == pytest.approx(np.exp(logs.mean()))
    assert (slow["ratio_low"], slow["ratio_high"]) == pytest.approx((low, high))
    assert slow["p"] == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)
    assert slow["p_holm"] == pytest.approx(2 * slow["p"])
    assert (slow["difference"], slow["verdict"]) == (-20, "slower")
    assert (same["ratio"], same["verdict"], same["p_holm"]) == (1, "equal within 1 %", 1)
    assert made.attrs["metric"] == "output_throughput_tps" and made.attrs["higher_is_better"] is True


def test_repeats_that_one_of_them_lacks_are_left_out_and_said(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    failed = {(0, 1): "timeout", (1, 2): "crashed"}
    made = analysis.compare(analysis.load(make_sweep(tmp_path / "sizes", SIZES[:2], repeats=5, failed=failed)))
    assert made["num_pairs"].tolist() == [3]
    assert made["mean"].tolist() == [(80 + 110 + 120) / 3]
    assert "Repeats that the baseline lacks were left out: size=2." in made.attrs["caveats"]


def test_one_repeat_gives_ratios_and_says_what_cannot_be_said(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    made = analysis.compare(analysis.load(make_sweep(tmp_path / "sizes", SIZES)))
    assert made["ratio"].tolist() == pytest.approx([0.8, 1.0])
    assert set(made["verdict"]) == {"too few repeats"}
    assert made[["ratio_low", "p", "p_holm", "detectable", "repeats_needed"]].isna().all().all()
    assert made.attrs["caveats"][0].startswith("There is one repeat only")


def test_a_point_that_never_finished_is_not_measured(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    failed = {(1, repeat): "error" for repeat in range(3)}
    made = analysis.compare(analysis.load(make_sweep(tmp_path / "sizes", SIZES, repeats=3, failed=failed)))
    assert made["verdict"].tolist() == ["not measured", "equal within 1 %"]
    # What was not measured is no comparison that would be corrected for.
    assert made["p_holm"].tolist()[1] == made["p"].tolist()[1]
    assert "both the point and its baseline were measured: size=2." in made.attrs["caveats"][0]


def test_figures_that_may_be_zero_are_compared_by_differences(sizes: analysis.Sweep) -> None:
    made = analysis.compare(sizes, metric="num_preemptions")
    assert made["ratio"].isna().all()
    assert made["difference"].tolist() == [0, 0]


def test_lower_is_faster_for_latencies(sizes: analysis.Sweep) -> None:
    made = analysis.compare(sizes, metric="ttft_p50_s", baseline="size=2")
    assert made["verdict"].tolist() == ["faster", "faster"]
    assert made.attrs["higher_is_better"] is False


def test_p_values_are_corrected_for_all_points_of_the_sweep() -> None:
    noise = Noise(run=0.01, more=1, drift=0, walk=0)
    many = analysis.compare(make_sweep(np.random.default_rng(8), [1, 0.95, *[1.0] * 20], 5, noise))
    smallest = many["p"].idxmin()
    assert many["p_holm"][smallest] == pytest.approx(21 * many["p"][smallest])
    assert (many["p_holm"] >= many["p"]).all()


def test_a_wider_band_of_equality_is_respected(sizes: analysis.Sweep) -> None:
    made = analysis.compare(sizes, equal_within=0.3, effect=0.5)
    assert made["verdict"].tolist() == ["equal within 30 %"] * 2


def test_the_bootstrap_is_there_for_who_asks(sizes: analysis.Sweep) -> None:
    made, boot = (analysis.compare(sizes, interval=name).iloc[0] for name in ("t", "bootstrap"))
    assert boot["ratio_high"] - boot["ratio_low"] < made["ratio_high"] - made["ratio_low"]
    assert boot["ratio"] == made["ratio"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"metric": "output_througput_tps"}, "metric=output_througput_tps: no such metric; did you mean output_throu"),
        ({"metric": "repeat"}, "metric=repeat: no such metric"),
        ({"metric": "cfg.size"}, "metric=cfg.size: no such metric"),
        ({"metric": "perplexity"}, "metric=perplexity: null in every finished run; it was not measured here"),
        ({"metric": "started_at"}, "metric=started_at: null in every"),
        ({"metric": "workload_sha256"}, "metric=workload_sha256: must be a column of numbers; "),
        ({"metric": "run_id"}, "metric=run_id: must be a column of numbers; "),
        ({"baseline": "size=3"}, "baseline=size=3: fits no point; there are size=1; size=2; size=4"),
        ({"interval": "wild"}, "interval='wild': must be one of"),
        ({"equal_within": 0.1}, "equal_within=0.1: must be 0 or more and under effect=0.05"),
    ],
)
def test_a_mistake_is_one_line_with_the_key_and_the_value(
    sizes: analysis.Sweep, options: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError) as error:
        analysis.compare(sizes, **options)  # type: ignore[arg-type]
    assert str(error.value).startswith(says) and "\n" not in str(error.value)


def test_a_sweep_of_which_nothing_finished_says_so(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sizes", SIZES[:1], failed={(0, 0): "error"})
    _rewrite(folder, "000000000000-r0", output_throughput_tps=None)
    with pytest.raises(ValueError, match="no run finished"):
        analysis.compare(analysis.load(folder))


def test_two_sweeps_are_compared_point_by_point(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    old = analysis.load(make_sweep(tmp_path / "old", SIZES, repeats=3))
    faster = [{**point, "tps": point["tps"] * 1.5} for point in SIZES[:2]]
    new = analysis.load(make_sweep(tmp_path / "new", faster, repeats=3))
    made = analysis.compare(old, new)
    assert made["label"].tolist() == ["size=1", "size=2"]
    assert made["baseline"].tolist() == ["old: size=1", "old: size=2"]
    assert (made["ratio"] > 1.3).all() and made["verdict"].tolist() == ["faster", "faster"]
    assert any("1 point(s) are in" in line and "old only" in line for line in made.attrs["caveats"])
    assert "ran at different times" in made.attrs["caveats"][0]


def test_every_environment_column_that_differs_is_listed(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folders = [make_sweep(tmp_path / name, SIZES[:1], repeats=2) for name in ("old", "new")]
    for repeat in range(2):
        changed = {"env.python": "3.12.1", "env.gpu": "H200", "env.load_average_1m": 7.5 + repeat, "schema_version": 2}
        _rewrite(folders[1], f"000000000000-r{repeat}", workload_sha256="another", **changed)
    made = analysis.compare(*map(analysis.load, folders))
    text = "\n".join(made.attrs["caveats"])
    assert "env.python (3.11.7 -> 3.12.1)" in text
    assert "env.gpu (null -> H200)" in text
    assert "env.load_average_1m (0.5 to 0.5 -> 7.5 to 8.5)" in text
    assert "env.cpu_count" not in text
    assert "schema versions differ (1 -> 2)" in text
    assert "2 of 2 runs of both did not have the same workload" in text


def test_within_a_sweep_a_changed_environment_workload_or_schema_is_said(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    folder = make_sweep(tmp_path / "sizes", SIZES[:2], repeats=3)
    _rewrite(folder, "000000000001-r2", **{"env.python": "3.12.1", "schema_version": 2, "workload_sha256": "x"})
    text = "\n".join(analysis.compare(analysis.load(folder)).attrs["caveats"])
    for said in ("env.python (3.11.7, 3.12.1)", "several schema versions (1, 2)", "did not have the same workload"):
        assert said in text


def test_sweeps_without_a_common_point_and_a_baseline_beside_two_sweeps_are_mistakes(sizes: analysis.Sweep) -> None:
    runs = sizes.runs.assign(point_id="another")
    with pytest.raises(ValueError, match="has no point of the same config"):
        analysis.compare(sizes, sweep_of(runs))
    with pytest.raises(ValueError, match="baseline=size=1: leave it out where two sweeps are compared"):
        analysis.compare(sizes, sizes, baseline="size=1")
