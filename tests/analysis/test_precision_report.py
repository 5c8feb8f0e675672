"""The table of precisions, its sentences, plots and caveats, wherever a report shows them."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import analysis
from analysis.answer import answer
from analysis.caveats import caveats
from analysis.figures import write_figures
from analysis.markdown import markdown
from analysis.page import page
from analysis.plots import write_plots
from analysis.precision_plots import precision_specs
from analysis.precision_table import PRECISIONS, table_of
from analysis.precision_words import MAX_SENTENCES, sentences_of
from analysis.terminal import print_precisions

FEW = (
    ("fp32", None, 8.0, (100, 400), 0.0, 0.0),
    ("int8", 8.5, 2.0, (200, 500), 0.002, 0.001),
    ("int4", 4.5, 1.0, (300, 350), 0.08, 0.06),
)


def _sentence(*rows: tuple[str, float, float, float, float], **changes: Any) -> list[str]:
    """Of rows of a name, a speed, and the ratio of perplexities with its ends; the first is the baseline."""
    table = pd.DataFrame(rows, columns=["label", "speed", "ratio", "low", "high"])
    base = table["speed"].iloc[0]
    frame = pd.DataFrame({"label": table["label"], "baseline": table["label"].iloc[0]})
    frame["is_baseline"] = frame["label"] == frame["baseline"]
    frame["output_throughput_tps@4"] = table["speed"]
    for part, wide in (("", 1.0), ("_low", 0.9), ("_high", 1.1)):
        frame[f"output_throughput_tps_ratio{part}@4"] = table["speed"] / base * wide
        frame[f"perplexity_ratio{part}"] = table["ratio" if not part else part[1:]]
        frame[f"kl_mean_nats{part}"] = 0.03 * wide
    frame.attrs = {"sizes": [4], "batch_name": "batch size"}
    return sentences_of(frame.assign(**changes))


NONE = float("nan")
BASE = ("fp32", 100.0, 1.0, 1.0, 1.0)


def test_the_answer_is_the_fastest_that_costs_little_and_the_fastest_of_all() -> None:
    assert _sentence(BASE, ("int8", 200.0, 1.002, 0.999, 1.005), ("int4", 290.0, 1.021, 1.018, 1.024)) == [
        "At batch size 4, the fastest that costs at most 1 % of perplexity is **int8**: **2.00× [1.80, 2.20]** as fast "
        "as fp32 for **1.002× [0.999, 1.005]** its perplexity (no measurable difference). Fastest of all is **int4**: "
        "**2.90× [2.61, 3.19]** as fast as fp32 for **1.021× [1.018, 1.024]** its perplexity."
    ]


def test_a_cost_that_is_not_known_to_be_small_does_not_count_as_small() -> None:
    (said,) = _sentence(BASE, ("int4", 290.0, 1.001, 0.98, 1.022))
    assert said.startswith("At batch size 4, nothing that costs at most 1 % of perplexity is faster than **fp32**.")
    assert "Fastest of all is **int4**" in said and "(no measurable difference)" in said
    (said,) = _sentence(BASE, ("int4", 290.0, 1.001, NONE, NONE))
    assert "costs at most 1 % of perplexity is **int4**" in said, "without items the figure is all there is"


def test_where_the_baseline_is_fastest_or_lacks_figures_that_is_the_answer() -> None:
    assert _sentence(BASE, ("int8", 90.0, 1.0, 1.0, 1.0)) == [
        "At batch size 4, nothing is faster than **fp32** (**100.0** tok/s)."
    ]
    (said,) = _sentence(("fp32", NONE, 1.0, 1.0, 1.0), ("int8", 90.0, 1.0, 1.0, 1.0))
    assert said.endswith("**int8** is the fastest (**90.0** tok/s); the baseline fp32 has no figures there, so there "
                         "are no ratios.")  # fmt: skip
    assert _sentence(BASE) == [], "one precision is no choice"
    assert _sentence(("fp32", NONE, 1.0, 1.0, 1.0), ("int8", NONE, 1.0, 1.0, 1.0)) == []


def test_without_perplexities_the_answer_has_divergences_and_chance_is_named() -> None:
    (said,) = _sentence(("fp32", 100.0, NONE, NONE, NONE), ("int8", 105.0, NONE, NONE, NONE))
    assert said == (
        "At batch size 4, the fastest is **int8**: **1.05× [0.95, 1.16]** as fast as fp32 (no difference shown) at a "
        "KL divergence of **0.030 [0.027, 0.033]** nats a token."
    )


def test_of_many_settings_the_first_are_told(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [
        {"scheduler": f"s{i}", "quantization": name, "tps": tps}
        for i in range(8)
        for name, tps in (("none", 100), ("int8", 150))
    ]
    said = sentences_of(analysis.precision(analysis.load(make_sweep(tmp_path / "sweep", points, details=False))))
    assert len(said) == MAX_SENTENCES + 1 and said[-1].startswith("2 more")


def test_the_table_fits_a_page(precisions: analysis.Sweep) -> None:
    found = table_of(analysis.precision(precisions))
    assert found is not None
    titles = [column.title for column in found.columns]
    assert titles[:6] == ["bits", "weights", "batch size 1", "batch size 8", "batch size 32", "perplexity"]
    assert titles[6:] == ["KL", "top-1", "flips", "greedy", "task"]
    assert found.labels[0] == "fp32" and found.is_base[0] and sum(found.is_base) == 1
    bf16 = found.columns[5].cells[1]
    assert bf16.small[-2:] == ("no measurable", "difference")
    assert [cell.is_best for cell in found.columns[4].cells] == [True, False, True, True, False, False, False]


def test_a_table_of_many_rows_and_sizes_shows_some_and_says_so(
    tmp_path: Path, make_sweep: Callable[..., Path], make_quality_sweep: Callable[..., Path]
) -> None:
    points = [
        {
            "quantization": f"q{i}",
            "workload.concurrency": size,
            "tps": 100 + i,
            "columns": {"perplexity": 5 + i / 9},
        }
        for i in range(30)
        for size in (1, 2, 4, 8, 16)
    ]
    table = analysis.precision(analysis.load(make_sweep(tmp_path / "sweep", points, details=False)))
    found = table_of(table)
    assert found is not None and len(found.labels) == 24 and found.labels[0] == "quantization=q0"
    said = " ".join(found.notes)
    assert "6 more rows" in said and "4 of 5 batch sizes" in said
    assert len([column for column in found.columns if column.title.startswith("batch size")]) == 4


def test_without_quality_there_is_no_table_nor_plot_nor_caveat(ablation: analysis.Sweep) -> None:
    assert table_of(analysis.precision(ablation)) is None
    assert precision_specs(ablation, analysis.precision(ablation)) == {}
    found = answer(ablation)
    summary = analysis.points(ablation)
    assert found.precisions is None
    assert PRECISIONS not in page(ablation, summary, found) + markdown(ablation, summary, {}, found)
    assert not [line for line in caveats(ablation, summary) if "quality" in line.lower()]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, make_quality_sweep: Callable[..., Path]) -> analysis.Sweep:
    folder = tmp_path_factory.mktemp("few") / "sweep"
    return analysis.load(make_quality_sweep(folder, precisions=FEW, sizes=(1, 8), details=False))


def test_page_and_markdown_have_the_same_table_and_begin_with_the_answer(few: analysis.Sweep) -> None:
    found, summary = answer(few), analysis.points(few)
    assert found.precisions is not None
    shown = table_of(found.precisions)
    assert shown is not None
    text = markdown(few, summary, {}, found)
    html = page(few, summary, found)
    assert text.splitlines()[2].startswith(
        "At batch size 1, the fastest that costs at most 1 % of perplexity is **int8**"
    )
    assert html.index("the fastest that costs at most") < html.index("<section")
    assert html.index('<section id="precisions"') == html.index("<section")
    row = next(line for line in text.splitlines() if line.startswith("| int8 | 8.50"))
    cells = re.search(r"<td>int8</td>(.*?)</tr>", html[html.index('id="precisions"') :])
    assert cells is not None
    for column in shown.columns:
        cell = column.cells[1]
        assert cell.text in row and cell.text in cells.group(1)
        assert all(line in row and line in cells.group(1) for line in cell.small)
    assert "| **fp32** |" in text and "★" in row


def test_quality_has_no_tab_of_verdicts_from_one_repeat(few: analysis.Sweep) -> None:
    assert {one.metric.title for one in answer(few).verdicts} & {"Perplexity", "KL", "Agreement"} == set()


@pytest.mark.parametrize(("width", "encoding"), [(60, "utf-8"), (100, "latin-1"), (200, "utf-8")])
def test_the_terminal_shows_what_it_has_room_for(few: analysis.Sweep, width: int, encoding: str) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    print_precisions(analysis.precision(few), Console(file=out, width=width))
    out.flush()
    text = raw.getvalue().decode(encoding)
    table = text.split("Ratios and the task")[0]
    assert max(map(len, table.splitlines())) <= width
    assert ("★" in text) == (encoding == "utf-8") and "batch size 1" in table
    assert ("perplexity" in table) == (width > 60) and ("greedy" in table) == (width > 100)


def test_plots_have_a_panel_a_batch_size_and_a_frontier_in_steps(few: analysis.Sweep) -> None:
    specs = precision_specs(few, analysis.precision(few))
    assert set(specs) == {"precisions", "precisions-kl", "precisions-greedy"}
    kl = specs["precisions-kl"]["panels"]
    assert [panel["title"] for panel in kl] == ["batch size 1", "batch size 8"]
    assert [one["name"] for one in kl[0]["series"]] == ["fp32", "int8", "int4"]
    # fp32 diverges by nothing: it lies on the lower edge.
    assert kl[0]["y"]["log"] and kl[0]["series"][0]["y"] == [0] and 0 < kl[0]["y"]["min"] < 1e-3
    line = kl[0]["lines"][0]
    speeds, costs = ([one[axis][0] for one in kl[0]["series"]] for axis in ("x", "y"))
    assert line["x"] == [speeds[0], speeds[0], speeds[1], speeds[1], speeds[2]]
    assert line["y"] == [costs[0], costs[1], costs[1], costs[2], costs[2]]
    # At batch size 8 int4 is slower than fp32, and on no frontier.
    assert max(kl[1]["lines"][0]["x"]) == kl[1]["series"][1]["x"][0]
    int8 = specs["precisions"]["panels"][0]["series"][1]
    for axis in ("x", "y"):
        assert int8[f"{axis}lo"][0] < int8[axis][0] < int8[f"{axis}hi"][0]
    json.dumps(specs, allow_nan=False)


def test_plots_name_one_knob_by_its_values_and_cut_whiskers_that_go_too_far(
    tmp_path: Path, make_quality_sweep: Callable[..., Path]
) -> None:
    folder = make_quality_sweep(
        tmp_path / "sweep", precisions=FEW, sizes=(None,), knob="quantization", noise=0.4, repeats=2, details=False
    )
    sweep = analysis.load(folder)
    table = analysis.precision(sweep)
    (panel,) = precision_specs(sweep, table)["precisions"]["panels"]
    assert [one["name"] for one in panel["series"]] == ["fp32", "int8", "int4"]
    speeds = [one["x"][0] for one in panel["series"]]
    assert table["output_throughput_tps_ratio_high"].max() > 50, "two repeats know next to nothing"
    assert panel["x"]["max"] == pytest.approx(2 * max(speeds) - min(speeds))
    assert max(one["xhi"][0] for one in panel["series"]) == panel["x"]["max"]


def test_greedy_outputs_part_from_the_unquantized_ones(few: analysis.Sweep) -> None:
    panel = precision_specs(few, analysis.precision(few))["precisions-greedy"]["panels"][0]
    shares = {one["name"]: one["y"] for one in panel["series"]}
    assert shares["fp32"] == [100.0] * 65
    assert all(np.diff(share).max() <= 0 and share[0] == 100 for share in shares.values())
    quality = few.quality.merge(few.runs[["run_id", "cfg.variant", "cfg.workload.concurrency"]], on="run_id")
    own = quality[(quality["cfg.variant"] == "int4") & (quality["cfg.workload.concurrency"] == 1)]
    first = own.loc[own["kind"] == "generation", "first_divergence"].fillna(64)
    assert shares["int4"][20] == pytest.approx(100 * (first >= 20).mean())


def test_figures_and_pictures_are_drawn(tmp_path: Path, make_quality_sweep: Callable[..., Path]) -> None:
    folder = make_quality_sweep(tmp_path / "sweep", precisions=FEW, sizes=(None,), details=False, repeats=1)
    sweep = analysis.load(folder)
    found, summary = answer(sweep), analysis.points(sweep)
    files = {path.stem: path for path in write_figures(sweep, summary, found, tmp_path / "svg")}
    named = re.findall(r'<(?:figure|table) class="[^"]+" data-name="([^"]+)"', page(sweep, summary, found))
    assert sorted(files) == sorted(named) and {"precisions", "precisions-kl", "precisions-greedy"} < set(files)
    text = files["precisions-kl"].read_text(encoding="utf-8")
    words = [" ".join(node.itertext()) for node in ElementTree.fromstring(text).iter() if node.tag.endswith("}text")]
    assert {"fp32", "int8", "int4"} < set(words) and "KL divergence (nats), lower is better" in words
    drawn = write_plots(sweep, summary, tmp_path / "plots")
    assert drawn["quality_against_speed"].stat().st_size > 20_000


def _caveats(folder: Path) -> list[str]:
    sweep = analysis.load(folder)
    found = caveats(sweep, analysis.points(sweep))
    assert set(analysis.precision(sweep).attrs["caveats"]) <= set(found)
    return [line for line in found if "quality" in line.lower() or "items" in line]


def test_few_tokens_and_missing_quality_are_caveats(tmp_path: Path, make_quality_sweep: Callable[..., Path]) -> None:
    short = {"num_windows": 6, "window_tokens": 100}
    make = {"precisions": FEW, "details": False, "items": short}
    (said,) = _caveats(make_quality_sweep(tmp_path / "short", sizes=(1,), **make))
    assert said.startswith("Quality of 3 of 3 measured precisions rests on 600 tokens of text, under 2,000")
    said, _ = _caveats(make_quality_sweep(tmp_path / "int8", sizes=(1,), lacking=("int8",), **make))
    assert said.startswith("No quality of int8: the first repeat did not finish, or quality was not asked for")
    said, _ = _caveats(make_quality_sweep(tmp_path / "fp32", sizes=(1,), lacking=("fp32",), **make))
    assert said.startswith("No perplexity of fp32, which others are compared with, so there are no ratios to it")
    whole = {"precisions": FEW, "details": False, "sizes": (1,)}
    assert _caveats(make_quality_sweep(tmp_path / "whole", **whole)) == []


def test_items_that_do_not_match_and_quality_that_varies_are_caveats(
    tmp_path: Path, make_quality_sweep: Callable[..., Path]
) -> None:
    folder = make_quality_sweep(tmp_path / "sweep", precisions=FEW, sizes=(1, 8), details=False)
    sweep = analysis.load(folder)
    runs = sweep.runs.set_index("run_id")
    at = runs.index[(runs["cfg.variant"] == "int8") & (runs["repeat"] == 0)]
    first = sweep.quality["run_id"].eq(at[0]) & sweep.quality["item_id"].eq("text-0")
    sweep.quality.loc[first, "num_tokens"] = 7
    sweep.runs.loc[sweep.runs["run_id"] == at[1], "perplexity"] *= 1.01
    table = analysis.precision(sweep)
    unlike, varies = table.attrs["caveats"]
    assert unlike.startswith("Not measured on the same items as what it is compared with: int8;")
    assert varies.startswith("Quality of int8 is not the same in all its runs (perplexity 5.88")
    assert varies.endswith("; shown is that at batch size 1.")
    # The window of another length has no part in the ratio.
    assert table["perplexity_ratio"].iloc[1] == pytest.approx(1.002, abs=0.002)
