from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from noisy_sweeps import Noise
from noisy_sweeps import make_sweep as noisy_sweep
from rich.console import Console

import analysis
from analysis.comparison_table import print_comparison, write_comparison
from experiments.cli import main

SIZES = [{"size": 1, "tps": 100}, {"size": 2, "tps": 80}, {"size": 4, "tps": 100}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_sweep: Callable[..., Path]) -> Path:
    return make_sweep(tmp_path_factory.mktemp("sweeps") / "sizes", SIZES, repeats=4)


def _shown(folder: Path, other: Path | None = None, **options: object) -> str:
    out = io.StringIO()
    write_comparison(folder, other, console=Console(file=out, width=80), **options)  # type: ignore[arg-type]
    return out.getvalue()


def _row(shown: str, label: str) -> str:
    return " ".join(next(line for line in shown.splitlines() if line.startswith(label)).split())


def test_a_row_shows_means_ratio_interval_p_and_verdict(folder: Path) -> None:
    shown = _shown(folder, baseline="size=1")
    assert "Output (tok/s), higher is better against size=1" in shown
    assert _row(shown, "size=2") == "size=2 4 95.0 115.0 0.824× [0.793, 0.857] 0.001 14.2 % 15 slower"
    assert _row(shown, "size=4") == "size=4 4 115.0 115.0 1.000× [1.000, 1.000] 1.000 1.0 % 3 equal within 1 %"
    assert "note  No A/A points" in shown


def test_what_is_not_known_is_a_dash(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    shown = _shown(make_sweep(tmp_path / "sizes", SIZES[:2]))
    assert _row(shown, "size=2") == "size=2 1 80.0 100.0 0.800× – – – too few repeats"
    assert "There is one repeat only" in shown


def test_metrics_that_may_be_zero_show_differences(folder: Path) -> None:
    shown = _shown(folder, metric="num_preemptions")
    assert "difference" in shown
    assert _row(shown, "size=2") == "size=2 4 1.5 1.5 0.0 [0.0, 0.0] 1.000 1.0 % 3 equal within 1 %"


def test_a_metric_without_a_title_goes_by_its_column(folder: Path) -> None:
    assert "ttft_p50_s" not in _shown(folder, metric="ttft_p50_s")
    assert _shown(folder, metric="kv_blocks_total").startswith("kv_blocks_total against size=1")


def test_of_two_folders_each_point_is_compared_with_itself(
    folder: Path, tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    shown = _shown(folder, make_sweep(tmp_path / "later", SIZES[:2], repeats=4))
    assert "higher is better against the same points of sizes" in shown
    assert _row(shown, "size=1").startswith("size=1 4 115.0 115.0 1.000×")
    assert "ran at different times" in shown


def test_points_with_baselines_of_their_own_name_them(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [{"scheduler": kind, "rate": rate} for rate in (1, 2) for kind in ("fcfs", "static")]
    shown = _shown(make_sweep(tmp_path / "grid", points, repeats=3), baseline="scheduler=fcfs", within="rate")
    # Labels wrap rather than push a verdict off the page.
    assert _row(shown, "scheduler=static,").startswith("scheduler=static, scheduler=fcfs, rate=1 3 110.0 110.0 1.000×")
    assert "equal within 1 %" in shown and "…" not in shown


def test_a_narrow_terminal_keeps_ratio_and_verdict(folder: Path) -> None:
    out = io.StringIO()
    print_comparison(analysis.compare(analysis.load(folder)), Console(file=out, width=72))
    assert "…" not in out.getvalue()
    assert _row(out.getvalue(), "size=2").endswith("slower")
    assert "[0.793, 0.857]" in out.getvalue() and "baseline\n" not in out.getvalue()


def test_the_noise_floor_stands_beside_the_differences() -> None:
    configs = [{"cfg.label": "a", "cfg.q": 1}, {"cfg.label": "b", "cfg.q": 1}, {"cfg.label": "a", "cfg.q": 2}]
    sweep = noisy_sweep(np.random.default_rng(0), [1, 1, 0.5], 5, Noise(run=0.01), configs)
    out = io.StringIO()
    print_comparison(analysis.compare(sweep, baseline="q=1,label=a"), Console(file=out, width=160))
    floor = analysis.compare(sweep, baseline="q=1,label=a")["noise_floor"].iloc[1]
    assert f"{floor * 100:.1f} %" in _row(out.getvalue(), "label=a, q=2")
    assert _row(out.getvalue(), "label=a, q=2").endswith("slower")


def test_colour_follows_what_is_better(folder: Path) -> None:
    for metric, colour in (("output_throughput_tps", "31m"), ("ttft_p50_s", "31m")):
        out = io.StringIO()
        made = analysis.compare(analysis.load(folder), metric=metric)
        print_comparison(made, Console(file=out, width=160, force_terminal=True, color_system="standard"))
        assert f"\x1b[{colour}slower" in out.getvalue()


def test_the_command_prints_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folder), "--baseline", "size=2", "--metric", "ttft_p99_s", "--equal-within", "2"]) == 0
    shown = capsys.readouterr().out
    assert "TTFT p99 (ms), lower is better against size=2" in shown
    assert _row(shown, "size=1").endswith("faster")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--baseline", "size=3"], "minivllm: baseline=size=3: fits no point; there are size=1; size=2; size=4\n"),
        (["--metric", "speed"], "minivllm: metric=speed: no such metric; "),
        (["--metric", "perplexity"], "minivllm: metric=perplexity: null in every finished run"),
        (["--equal-within", "50"], "minivllm: equal_within=0.5: must be 0 or more and under effect=0.05"),
        (["nowhere"], "minivllm: folder=nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    folder: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(folder), *words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(says) and said.err.count("\n") == 1 and said.out == ""


def test_a_half_written_file_is_said_and_the_rest_compared(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sizes", SIZES, repeats=4)
    (folder / "runs" / "000000000002-r3.parquet").write_bytes(b"PAR1 half")
    shown = _shown(folder)
    assert "000000000002-r3.parquet: cannot be read and is left out" in shown
    assert _row(shown, "size=4").split()[1] == "3"
