from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from analysis.precision_table import PRECISIONS
from analysis.terminal import BLOCKS, PLAIN, print_report, sparkline


def _shown(folder: Path, width: int = 160, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding)
    print_report(folder, Console(file=out, width=width))
    out.flush()
    return raw.getvalue().decode(encoding)


def test_a_sparkline_keeps_peaks_and_leaves_gaps() -> None:
    assert sparkline([0, 1, 2, 4, 7], 10) == "▁▂▃▅█"
    assert sparkline(np.r_[np.zeros(500), 1.0, np.zeros(499)], 10).count("█") == 1
    assert sparkline([1.0, np.nan, 1.0], 10) == "█ █"
    assert sparkline([0.0, 0.0], 5) == "▁▁"
    assert sparkline([], 5) == sparkline([np.nan], 5) == ""
    assert sparkline([1, 2], 5, top=4) == "▃▅"


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_has_verdicts_and_sparklines_and_writes_nothing(
    tmp_path: Path, make_sweep: Callable[..., Path], width: int
) -> None:
    folder = make_sweep(
        tmp_path / "sweep", [{"size": 1}, {"size": 2, "tps": 50}], repeats=4, failed={(1, 3): "crashed"}
    )
    before = sorted(folder.rglob("*"))
    text = _shown(folder, width)
    assert sorted(folder.rglob("*")) == before
    assert "slower" in text and "crashed" in text and "KV use" in text
    assert set(BLOCKS) & set(text)


def test_a_terminal_without_blocks_gets_plain_marks(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}], repeats=1)
    text = _shown(folder, encoding="latin-1")
    assert not set(BLOCKS) & set(text)
    assert any(
        len(set(line.split()[-1])) > 1 and set(line.split()[-1]) <= set(PLAIN) for line in text.splitlines() if line
    )


def test_precisions_have_a_table_under_their_answer(precisions_folder: Path) -> None:
    text = _shown(precisions_folder)
    assert text.index("At batch size 32, the fastest that costs at most 1 %") < text.index(PRECISIONS)
    assert text.index(PRECISIONS) < text.index("verdict"), "before what tells points from each other"


def test_a_sweep_that_failed_whole_is_still_reported(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    text = _shown(make_sweep(tmp_path / "sweep", [{"size": 1}], failed={(0, 0): "error"}))
    assert "no run finished" in text and "must be 0 or more" in text
