"""Every plot of the page as a file that opens by itself."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

import analysis
from analysis.answer import answer
from analysis.figures import write_figures
from analysis.page import page
from experiments.cli import main

SVG = "{http://www.w3.org/2000/svg}"


def _figures(folder: Path, to: Path) -> dict[str, str]:
    sweep = analysis.load(folder)
    written = write_figures(sweep, analysis.points(sweep), answer(sweep), to)
    return {path.stem: path.read_text(encoding="utf-8") for path in written}


def _words(text: str) -> str:
    return " ".join(" ".join(node.itertext()) for node in ElementTree.fromstring(text).iter(f"{SVG}text"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_sweep: Callable[..., Path]) -> Path:
    """Everything there is to draw: two knobs, a load, verdicts, steps, and one run that failed."""
    points = [
        {"scheduler": scheduler, "cache.block_size": size, "workload.request_rate_rps": rate, "tps": tps * rate + size}
        for scheduler, tps in (("fcfs", 30), ("static", 20))
        for size in (8, 16)
        for rate in (2, 4)
    ]
    return make_sweep(tmp_path_factory.mktemp("figures") / "sweep", points, repeats=3, failed={(5, 2): "timeout"})


@pytest.fixture(scope="module")
def figures(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """As the command line writes them."""
    to = tmp_path_factory.mktemp("svg") / "paper" / "figures"
    assert main(["report", str(folder), "--figures", str(to)]) == 0
    return {path.stem: path.read_text(encoding="utf-8") for path in to.iterdir()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, make_sweep: Callable[..., Path]) -> Path:
    return make_sweep(tmp_path_factory.mktemp("small") / "sweep", [{"size": 1}, {"size": 2}], num_requests=2)


def test_there_is_one_for_each_plot_of_the_page(folder: Path, figures: dict[str, str]) -> None:
    sweep = analysis.load(folder)
    named = re.findall(r'<(?:figure|table) class="[^"]+" data-name="([^"]+)"', page(sweep, analysis.points(sweep)))
    assert sorted(figures) == sorted(named)
    assert {"verdicts-output_throughput_tps", "effects-main", "interactions", "frontier", "load", "time"} <= set(
        figures
    )


def test_each_is_drawn_and_refers_to_nothing_outside_of_it(figures: dict[str, str]) -> None:
    for name, text in figures.items():
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg" and float(root.attrib["width"].removesuffix("pt")) > 150, name
        assert len(list(root.iter(f"{SVG}path"))) > 10, name
        assert not list(root.iter(f"{SVG}image")), "a vector picture has no pixels"
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(link.startswith("#") for link in links), name
        assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", text)), name
        fonts = re.findall(r"font(?:-family)?: [^;\"]*[A-Za-z][^;\"]*", text)
        assert fonts and all("sans-serif" in font for font in fonts), name


def test_words_are_words_and_figures_are_those_of_the_table(figures: dict[str, str], folder: Path) -> None:
    table = answer(analysis.load(folder)).verdicts[0].table
    words = _words(figures["verdicts-output_throughput_tps"])
    for _, row in table.iterrows():
        assert f"{row['mean']:,.1f}" in words
    assert "ratio to the baseline" in words and "verdict" in words
    assert "lower is better" in _words(figures["frontier"])


def test_the_same_tables_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    assert _figures(small, tmp_path / "first") == _figures(small, tmp_path / "again")


def test_labels_mean_nothing_to_svg_or_to_mathematics(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    names = ["<b>&amp;</b>", "$x^2$ and $", "</svg>"]
    found = _figures(make_sweep(tmp_path / "sweep", [{"name": name} for name in names], repeats=2), tmp_path / "svg")
    words = _words(found["verdicts-output_throughput_tps"])
    # Those beside the baseline and itself.
    assert "$x^2$ and $" in words and "</svg>" in words and "<b>&amp;</b>" in words


@pytest.mark.parametrize("metrics", [True, False])
def test_a_lone_point_has_what_can_be_drawn(tmp_path: Path, make_sweep: Callable[..., Path], metrics: bool) -> None:
    found = _figures(make_sweep(tmp_path / "sweep", [{"size": 1}], metrics=metrics), tmp_path / "svg")
    assert sorted(found) == (["latency", "time"] if metrics else [])


def test_the_command_line_says_how_many_and_where(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(small), "--figures", str(tmp_path / "svg")]) == 0
    made = list((tmp_path / "svg").iterdir())
    assert f"{len(made)} SVG files" in capsys.readouterr().out
    assert (small / "report.html").exists() and len(made) > 3
    assert not list(small.rglob("*.svg"))


def test_a_file_in_the_way_is_one_line(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("in the way")
    assert main(["report", str(small), "--figures", str(tmp_path / "taken")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "taken") in error


def test_a_report_without_files_and_figures_exclude_each_other(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(small), "--terminal", "--figures", str(tmp_path / "svg")]) == 2
    assert "choose one" in capsys.readouterr().err and not (tmp_path / "svg").exists()
