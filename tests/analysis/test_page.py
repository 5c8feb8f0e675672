from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis.page import page

_VOID = {"meta", "link", "br", "line", "rect", "circle", "img", "input"}


class _Reader(HTMLParser):
    """Checks that tags close in the order in which they opened, and keeps ids, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.addresses += [values[key] or "" for key in ("href", "src") if key in values]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data + " "


def _read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    assert len(set(reader.ids)) == len(reader.ids)
    return reader


def _page(folder: Path) -> str:
    sweep = analysis.load(folder)
    return page(sweep, analysis.points(sweep))


def _sections(text: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', text)


def _specs(text: str) -> list[dict[str, Any]]:
    return [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text)]


@pytest.fixture(scope="module")
def ablation_page(ablation_folder: Path) -> str:
    return _page(ablation_folder)


def test_a_page_is_sound_and_refers_to_nothing_outside_of_it(ablation_page: str) -> None:
    reader = _read(ablation_page)
    assert all(address.startswith("#") or address == "data:," for address in reader.addresses)
    assert {address[1:] for address in reader.addresses if address.startswith("#")} <= set(reader.ids)
    assert "url(" not in ablation_page and "@import" not in ablation_page
    outside = set(re.findall(r"https?://[\w./-]+", ablation_page))
    assert outside == {"http://www.w3.org/2000/svg"}, "the name of a namespace, which nobody fetches"


def test_the_first_screen_has_the_ratios_before_any_other_section(ablation_page: str) -> None:
    first = _read(ablation_page[: ablation_page.index("<section")] + "</body></html>").text
    assert "3 points × 2 repeats" in first
    assert "no_prefix_cache" in first
    assert re.search(r"0\.8\d× \[", first)
    assert "too few repeats" in first
    assert "repeats=5" in first


def test_an_ablation_has_these_sections(ablation_page: str) -> None:
    assert _sections(ablation_page) == [
        "frontier",
        "latency",
        "time",
        "points",
        "failed",
        "caveats",
        "variants",
        "environment",
        "definitions",
    ]


def test_every_number_of_a_plot_is_one_or_null(ablation_page: str) -> None:
    specs = _specs(ablation_page)
    assert len(specs) == 3
    for panel in (panel for spec in specs for panel in spec.get("panels", [])):
        assert panel["series"]
        for series in panel["series"]:
            assert len(series["x"]) == len(series["y"]) > 0


def test_two_knobs_have_effects_and_a_plot_of_their_interaction(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    knobs = [
        {"scheduler": scheduler, "cache.block_size": size, "tps": tps + 3 * (size == 16)}
        for scheduler, tps in (("fcfs", 100), ("static", 50))
        for size in (8, 16)
    ]
    text = _page(make_sweep(tmp_path / "sweep", knobs, repeats=4))
    assert "effects" in _sections(text)
    assert "What each knob does to output throughput" in text
    assert any(spec["panels"][0]["title"] == "scheduler × block_size" for spec in _specs(text) if "panels" in spec)


def test_load_curves_come_where_the_load_was_swept_and_compare_at_equal_load(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    loads = [
        {"scheduler": scheduler, "workload.request_rate_rps": rate, "tps": tps * rate}
        for scheduler, tps in (("fcfs", 10), ("static", 5))
        for rate in (2, 4, 8)
    ]
    text = _page(make_sweep(tmp_path / "sweep", loads, repeats=3))
    assert "load" in _sections(text)
    panel = next(spec["panels"][0] for spec in _specs(text) if spec.get("least") == 330)
    assert [series["x"] for series in panel["series"]] == [[2.0, 4.0, 8.0]] * 2
    first = text[: text.index("<section")]
    assert first.count("(baseline)") >= 3


@pytest.mark.parametrize("status", ["ok", "error"])
def test_one_point_has_a_page_too(tmp_path: Path, make_sweep: Callable[..., Path], status: str) -> None:
    failed = {} if status == "ok" else {(0, 0): status}
    text = _page(make_sweep(tmp_path / "alone", [{"size": 1}], failed=failed))
    sections = _sections(text)
    assert "effects" not in sections and "frontier" not in sections
    if status == "ok":
        assert "nothing to be compared with" in text
        assert "latency" in sections and "failed" not in sections
    else:
        assert "No run finished" in text
        assert "latency" not in sections and "failed" in sections
    _read(text)


def test_metrics_that_are_all_null_leave_no_empty_section(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    text = _page(make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}], metrics=False))
    assert _sections(text) == ["caveats", "environment", "definitions"]
    _read(text)


def test_many_points_limit_themselves_and_say_so(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [{"size": size, "tps": 100 + size} for size in range(40)]
    text = _page(make_sweep(tmp_path / "sweep", points, num_requests=2))
    assert "Shown are the 14 of 39 points that differ most" in text
    assert "Shown: 12 of 40 points, the baseline and the fastest." in text
    curves = next(spec for spec in _specs(text) if spec.get("panels", [{}])[0].get("title") == "TTFT")
    assert len(curves["legend"]) == 12
    frontier = next(spec for spec in _specs(text) if spec["kind"] == "pareto")
    assert len(frontier["points"]) == 40


def test_a_label_cannot_break_out_of_the_page(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    evil = "</script><script>alert(1)</script>"
    text = _page(make_sweep(tmp_path / "sweep", [{"name": evil}, {"name": "b&b"}], repeats=2))
    assert evil not in text
    assert "<script>alert" not in text
    _read(text)


def test_an_aa_sweep_shows_its_noise_floor(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    text = _page(make_sweep(tmp_path / "aa", [{"label": "a", "tps": 100}, {"label": "b", "tps": 101}], repeats=3))
    assert "noise floor of this machine" in text
    assert 'class="floor"' in text
