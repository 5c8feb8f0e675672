from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from analysis.plots import shown
from analysis.style import COLOURS, MAX_POINTS, looks, place_labels, wrap


def test_no_two_of_a_dozen_points_look_alike() -> None:
    made = looks([f"point {i}" for i in range(MAX_POINTS)])
    assert len({(look.colour, str(look.dash)) for look in made.values()}) == MAX_POINTS
    assert len({(look.colour, look.marker) for look in made.values()}) == MAX_POINTS


def test_crowded_labels_cover_neither_each_other_nor_a_mark() -> None:
    figure = Figure(figsize=(6.8, 4.6))
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    rng = np.random.default_rng(0)
    marks = [(float(x), float(y)) for x, y in rng.uniform(0.3, 0.7, (8, 2))]
    ax.scatter(*zip(*marks, strict=True))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    figure.canvas.draw()
    spreads = [(x, x, y, y) for x, y in marks]
    place_labels(figure, ax, marks, spreads, [f"scheduler=policy_{i}, size={i}" for i in range(8)], COLOURS)
    notes = [child for child in ax.get_children() if isinstance(child, Annotation) and child.get_text()]
    boxes = [note.get_window_extent() for note in notes]
    assert len(boxes) == 8
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*ax.transData.transform(mark)) for mark in marks)


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("baseline", ["baseline"]),
        ("scheduler=prefill_first, block_size=16", ["scheduler=prefill_first,", "block_size=16"]),
        ("a=1, b=2", ["a=1, b=2"]),
    ],
)
def test_labels_break_at_commas(label: str, lines: list[str]) -> None:
    assert wrap(label).splitlines() == lines


def test_a_plot_of_many_points_keeps_the_baseline_and_the_fastest_in_order() -> None:
    points = pd.DataFrame(
        {
            "label": [str(i) for i in range(30)],
            "num_repeats": 1,
            "is_baseline": [i == 3 for i in range(30)],
            "output_throughput_tps": np.arange(30.0),
        }
    )
    assert shown(points)["label"].tolist() == ["3", *(str(i) for i in range(30 - MAX_POINTS + 1, 30))]
