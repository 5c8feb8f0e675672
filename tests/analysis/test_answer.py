from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

import analysis
from analysis.answer import answer, headline
from analysis.markdown import markdown
from analysis.words import ratio_text


def test_an_answer_says_what_was_told_from_the_baseline_largest_first(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    variants = [("baseline", 100), ("half", 50), ("tenth", 10), ("same", 100)]
    points = [{"variant": name, "tps": tps} for name, tps in variants]
    made = answer(analysis.load(make_sweep(tmp_path / "sweep", points, repeats=5)))
    assert made.metric.column == "output_throughput_tps"
    assert made.changes is None, "one knob: the verdicts say it all"
    assert any("2 slower" in line and "**baseline**" in line for line in made.sentences)
    named = next(line for line in made.sentences if "largest difference first" in line)
    assert named.index("tenth") < named.index("half") and "same" not in named
    assert list(made.verdicts[0].table["label"]) == ["same", "half", "tenth"], "best first"


def test_one_repeat_gives_ratios_and_no_verdicts(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    made = answer(analysis.load(make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2, "tps": 50}])))
    said = " ".join(made.sentences)
    assert "0.50×" in said and "One repeat cannot tell a difference from chance" in said
    assert "slower" not in said and "[" not in said


@pytest.mark.parametrize("metrics", [True, False])
def test_nothing_to_compare_has_no_answer(tmp_path: Path, make_sweep: Callable[..., Path], metrics: bool) -> None:
    points = [{"size": 1}] if metrics else [{"size": 1}, {"size": 2}]
    made = answer(analysis.load(make_sweep(tmp_path / "sweep", points, metrics=metrics)))
    assert made.verdicts == () and made.sentences == ()


def test_a_knob_is_named_once_with_what_it_does_most(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [{"a": a, "b.c": c, "tps": 100 * a * c} for a in (1, 2, 4) for c in (1, 3)]
    made = answer(analysis.load(make_sweep(tmp_path / "sweep", points, repeats=3)))
    assert made.changes is not None
    line = made.sentences[0]
    assert "a 1 → 4 **" in line and "a 1 → 2" not in line and "c 1 → 3 **" in line


def test_a_knob_that_does_nothing_is_said_to_show_no_effect(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    # Repeats drift by 10 tokens a second each, which is another ratio for each point.
    points = [{"a": a, "b.c": c, "tps": 100 * a + c} for a in (1, 4) for c in (0, 1)]
    made = answer(analysis.load(make_sweep(tmp_path / "sweep", points, repeats=3)))
    assert made.changes is not None
    changes = made.changes.assign(p_holm=[0.001 if knob == "a" else 0.7 for knob in made.changes["knob"]])
    said = headline(made.verdicts[0], changes)
    assert "a 1 → 4" in said[0] and "c 0" not in said[0]
    assert said[1] == "Averaged over all settings, no effect was shown of c."


def test_the_markdown_has_verdicts_and_effects(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [{"a": a, "b.c": c, "tps": 100 * a * c} for a in (1, 2) for c in (1, 3)]
    sweep = analysis.load(make_sweep(tmp_path / "sweep", points, repeats=3))
    text = markdown(sweep, analysis.points(sweep), {}, answer(sweep))
    assert "### Verdicts" in text and "### Effects" in text
    assert "| a=2, c=3 | 3 | " in text and "| faster |" in text
    assert "| `a` 1 → 2 × `c` 1 → 3 | " in text


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((0.61, 0.5812, 0.64), "0.61× [0.58, 0.64]"),
        ((1.002, 0.995, 1.009), "1.002× [0.995, 1.009]"),
        ((0.017, 0.012, 0.026), "0.017× [0.012, 0.026]"),
        ((25.0, 20.0, 31.0), "25.0× [20.0, 31.0]"),
        ((0.5, math.nan, math.nan), "0.50×"),
        ((math.nan, math.nan, math.nan), "–"),
    ],
)
def test_a_ratio_has_as_many_digits_as_it_is_worth(figures: tuple[float, float, float], expected: str) -> None:
    assert ratio_text(*figures) == expected
