from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from rich.console import Console

import analysis
from analysis.caveats import caveats
from analysis.report import write_report

ALL_PLOTS = {"output_throughput", "throughput_against_ttft", "latency_distributions", "kv_use"}


def _report(folder: Path, width: int = 160) -> tuple[str, str]:
    """What the terminal showed, and the Markdown."""
    out = io.StringIO()
    path = write_report(folder, Console(file=out, width=width))
    return out.getvalue(), path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reported(ablation_folder: Path) -> tuple[str, str]:
    return _report(ablation_folder)


def test_the_terminal_table_has_the_figures(reported: tuple[str, str]) -> None:
    shown, _ = reported
    row = next(line for line in shown.splitlines() if line.startswith("no_prefix_cache"))
    # n, output, smallest to largest, speed-up; p50 and p99 of TTFT, TPOT and E2E; preemptions.
    expected = "no_prefix_cache 2 85.0 80.0 to 90.0 0.81× 68.8 125.0 5.00 7.50 105 172 0.5"
    assert row.split() == expected.split()
    assert "timeout  static_batching (repeat 1): ValueError: scheduler.alpha=-1: must be 0 or more" in shown


def test_the_markdown_table_has_the_same_figures(reported: tuple[str, str]) -> None:
    _, text = reported
    row = next(line for line in text.splitlines() if line.startswith("| no_prefix_cache | 2"))
    assert row.startswith("| no_prefix_cache | 2 | 85.0 [80.0 to 90.0] | 0.81× [0.80 to 0.82] | 68.8 ")
    assert "| **baseline** | 2 | 105.0 [100.0 to 110.0] | 1.00× |" in text


def test_the_report_has_all_its_sections(reported: tuple[str, str]) -> None:
    _, text = reported
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == [
        "What was swept",
        "Results",
        "Failed",
        "Caveats",
        "Output throughput",
        "Throughput against TTFT",
        "Latency distributions",
        "KV cache use",
        "Environment",
        "Definitions",
    ]
    assert "3 points, 2 repeats each: 3 of the points gave results, 0 failed." in text
    assert "| no_prefix_cache | `cache.prefix_caching=false` |" in text


def test_links_are_relative_and_lead_somewhere(reported: tuple[str, str], ablation_folder: Path) -> None:
    links = re.findall(r"!\[.*?\]\((.*?)\)", reported[1])
    assert len(links) == 4
    for link in links:
        assert not Path(link).is_absolute()
        assert (ablation_folder / link).is_file()


@pytest.mark.usefixtures("reported")
@pytest.mark.parametrize("name", sorted(ALL_PLOTS))
def test_no_plot_is_blank(ablation_folder: Path, name: str) -> None:
    path = ablation_folder / "plots" / f"{name}.png"
    assert path.stat().st_size > 8_000
    pixels = imread(path)
    assert min(pixels.shape[:2]) > 250
    assert pixels[..., :3].std() > 0.05
    # Colour, not only black axes on white: some pixels differ between channels.
    assert (np.ptp(pixels[..., :3], axis=-1) > 0.2).mean() > 0.001


def test_caveats_name_few_repeats_failures_and_load(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}], repeats=2, failed={(1, 1): "crashed"})
    for run_id, changes in (
        ("000000000000-r0", {"env.load_average_1m": 7.25}),
        ("000000000000-r1", {"env.python": "3.12.1", "workload_sha256": "other"}),
    ):
        path = folder / "runs" / f"{run_id}.parquet"
        pq.write_table(pa.Table.from_pylist([pq.read_table(path).to_pylist()[0] | changes]), path)
    (folder / "steps" / "000000000000-r0.parquet").write_bytes(b"")
    sweep = analysis.load(folder)
    said = "\n".join(caveats(sweep, analysis.points(sweep)))
    assert "1 of 4 runs did not finish" in said
    assert "At most 2 finished repeats a point" in said
    assert "Points have between 1 and 2 finished repeats" in said
    assert "1 of 3 runs saw a load average well above the number of cores (up to 7.2)" in said
    assert "The environment changed within the sweep: `python`." in said
    assert "000000000000-r0.parquet: cannot be read" in said


def test_points_with_different_workloads_are_a_caveat(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}], metrics=False)
    path = folder / "runs" / "000000000001-r0.parquet"
    pq.write_table(pa.Table.from_pylist([pq.read_table(path).to_pylist()[0] | {"workload_sha256": "other"}]), path)
    sweep = analysis.load(folder)
    assert any("did not all get the same workload" in line for line in caveats(sweep, analysis.points(sweep)))


def test_a_sweep_of_which_nothing_finished_is_reported(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}], failed={(0, 0): "error", (1, 0): "invalid"})
    shown, text = _report(folder)
    assert "2 points, 2 failed; no run finished" in shown
    assert "No run finished" in text
    assert "| size=2 | 0 | invalid | ValueError: scheduler.alpha=-1: must be 0 or more |" in text
    assert "![" not in text and list((folder / "plots").iterdir()) == []


def test_metrics_that_are_all_null_are_said_to_be_missing(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    shown, text = _report(make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}], metrics=False))
    assert "| size=1 | 1 |" in text
    assert "Not measured in any run: Output, TTFT p50, TPOT p50." in text
    assert "size=2" in shown


def test_one_point_has_no_comparisons(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "lonely", [{"size": 1}])
    shown, text = _report(folder)
    assert "speed-up" not in shown and "Speed-up |" not in text
    assert {path.stem for path in (folder / "plots").iterdir()} == {"latency_distributions", "kv_use"}


def test_without_a_readable_run_the_report_says_so(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}])
    (folder / "runs" / "000000000000-r0.parquet").write_bytes(b"")
    shown, text = _report(folder)
    assert "0 points" in shown
    assert "cannot be read" in text


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}], failed={(0, 0): "error"})
    (folder / "plots").mkdir()
    (folder / "plots" / "kv_use.png").write_bytes(b"old")
    (folder / "plots" / "mine.png").write_bytes(b"keep")
    write_report(folder, Console(file=io.StringIO()))
    assert [path.name for path in (folder / "plots").iterdir()] == ["mine.png"]


@pytest.mark.parametrize("width", [40, 100])
def test_no_line_of_the_table_is_wider_than_the_terminal(
    tmp_path: Path, make_sweep: Callable[..., Path], width: int
) -> None:
    points = [{"scheduler._target_": f"mine.Policy{i}", "cache.block_size": 2**i} for i in range(2)]
    folder = make_sweep(tmp_path / "sweep", points, failed={(1, 0): "error"}, details=False)
    table = _report(folder, width)[0].split("error  ")[0]
    assert "Output" in table
    assert max(map(len, table.splitlines())) <= width


def test_piped_output_is_plain(
    tmp_path: Path, make_sweep: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    write_report(make_sweep(tmp_path / "sweep", [{"size": 1}], details=False))
    shown = capfd.readouterr().out
    assert "Output" in shown and "\x1b[" not in shown


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line_for_users(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}], metrics=False)
    folder.chmod(0o500)
    with pytest.raises(ValueError, match="must be writable"):
        write_report(folder, Console(file=io.StringIO()))


def test_a_file_in_the_place_of_the_plots_is_one_line(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}], metrics=False)
    (folder / "plots").write_text("in the way")
    with pytest.raises(ValueError, match="must be writable") as error:
        write_report(folder, Console(file=io.StringIO()))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
