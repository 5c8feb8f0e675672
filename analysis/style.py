"""How plots look: one colour, marker and dash per point across all plots of a report, readable by the colour-blind.

Colours are Okabe and Ito's, less the yellow that vanishes on white. Past eight points colours come again with other
markers and dashes, so that nothing rests on colour alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
# The same hues where the paper is dark: blue and green lighter, black turned white.
COLOURS_ON_DARK = ("#4BA3DC", "#F0783C", "#2CC498", "#DD96BC", "#EDB43C", "#8CCBF0", "#EEEEEE", "#A0A0A0")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">", "p", "*")
DASHES = ("solid", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
DPI = 160

# More than a dozen lines or labels in one picture is read by nobody.
MAX_POINTS = 12

_RC = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "savefig.dpi": DPI,
    # A dollar in a label is a dollar.
    "text.parse_math": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How one point is drawn wherever it appears."""

    colour: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]]


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look a label, by place: the same list gives the same looks."""
    return {
        label: Look(
            colour=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            dash=DASHES[(i // len(COLOURS)) % len(DASHES)],
        )
        for i, label in enumerate(labels)
    }


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with our settings and leave the caller's matplotlib as it was. Figures are made without pyplot, so no window
    system is asked for and no figure lives on."""
    with matplotlib.rc_context(_RC):
        yield


def wrap(label: str, width: int = 26) -> str:
    """Break a label at commas and underscores first, so that `a=1, b=2` stays readable on two lines."""
    lines: list[str] = []
    for part in label.split(", "):
        joined = f"{lines[-1]}, {part}" if lines else part
        if lines and len(joined) <= width:
            lines[-1] = joined
        else:
            if lines:
                lines[-1] += ","
            lines += textwrap.wrap(part, width) or [part]
    return "\n".join(lines)


def ink(colour: str) -> str:
    """A colour dark enough to read words in."""
    return to_hex([0.62 * part for part in to_rgb(colour)])


def log_axis(ax: Axes, values: Sequence[float] | np.ndarray) -> None:
    """Make the x axis logarithmic where values span more than a factor of ten, with plain numbers at 1, 2, 5, ..."""
    found = np.asarray(values, dtype=float)
    if len(found) < 2 or found.min() <= 0 or found.max() <= 10 * found.min():
        return
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if found.max() <= 500 * found.min() else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def place_labels(
    figure: Figure,
    ax: Axes,
    marks: Sequence[tuple[float, float]],
    spreads: Sequence[tuple[float, float, float, float]],
    labels: Sequence[str],
    colours: Sequence[str],
    steps: Sequence[np.ndarray] = (),
) -> None:
    """Write each label beside its mark, where it covers no other label, no mark, and hardly any whisker.

    Greedy: places around the mark are tried from near to far, and a label that had to go far gets a thin line.

    Args:
        figure: drawn once, so that its scales are settled.
        ax: of `figure`.
        marks: (x, y) of each mark, in data.
        spreads: (left, right, bottom, top) ends of each mark's whiskers, in data.
        labels: one a mark.
        colours: one a mark.
        steps: lines of upright and level parts that names should not lie on, `[num_places, 2]` in data.
    """
    inside = ax.get_window_extent()
    # Whoever covers a word or a mark does more harm than whoever crosses a whisker.
    taken: list[tuple[Bbox, float]] = []
    for (x, y), (left, right, bottom, top) in zip(marks, spreads, strict=True):
        (px, py), (x0, y0), (x1, y1) = ax.transData.transform([(x, y), (left, bottom), (right, top)])
        taken.append((Bbox.from_extents(px - 6, py - 6, px + 6, py + 6), 3.0))
        taken.append((Bbox.from_extents(x0 - 2, py - 2, x1 + 2, py + 2), 1.0))
        taken.append((Bbox.from_extents(px - 2, y0 - 2, px + 2, y1 + 2), 1.0))
    for path in steps:
        places = ax.transData.transform(path)
        for (x0, y0), (x1, y1) in zip(places[:-1], places[1:], strict=True):
            taken.append((Bbox.from_extents(min(x0, x1) - 2, min(y0, y1) - 2, max(x0, x1) + 2, max(y0, y1) + 2), 1.0))
    words: list[Bbox] = []
    for label, mark, colour in zip(labels, marks, colours, strict=True):
        note = ax.annotate(
            wrap(label), mark, (0, 0), textcoords="offset points", fontsize=8, color=ink(colour), linespacing=0.95
        )
        best: tuple[float, Bbox, tuple[float, float], str, str] | None = None
        for reach, (dx, dy, across, up) in ((reach, side) for reach in _REACHES for side in _SIDES):
            note.set(position=(dx * reach, dy * reach), ha=across, va=up, ma=across)
            box = note.get_window_extent().padded(1.5)
            harm = sum(weight for other, weight in taken if box.overlaps(other)) + 4 * (not _contains(inside, box))
            harm += 2 * any(text.contains(*spot) for spot in _line_to(figure, ax, mark, note) for text in words)
            if best is None or harm < best[0]:
                best = (harm, box, (dx * reach, dy * reach), across, up)
            if harm == 0:
                break
        assert best is not None
        _, box, offset, across, up = best
        note.set(position=offset, ha=across, va=up, ma=across)
        taken.append((box, 3.0))
        words.append(box)
        if max(map(abs, offset)) > 12:
            line = {"arrowstyle": "-", "color": ink(colour), "lw": 0.5, "shrinkA": 0, "shrinkB": 3}
            ax.annotate("", mark, offset, textcoords="offset points", arrowprops=line)


_REACHES = (7, 12, 20, 28, 38, 50, 64, 80, 100, 125)
# Directions around a mark, and how a label in each is aligned to it.
_SIDES = (
    (1.0, 0.0, "left", "center"),
    (-1.0, 0.0, "right", "center"),
    (0.0, 1.0, "center", "bottom"),
    (0.0, -1.0, "center", "top"),
    (0.7, 0.7, "left", "bottom"),
    (0.7, -0.7, "left", "top"),
    (-0.7, 0.7, "right", "bottom"),
    (-0.7, -0.7, "right", "top"),
    (1.0, 0.35, "left", "center"),
    (1.0, -0.35, "left", "center"),
    (-1.0, 0.35, "right", "center"),
    (-1.0, -0.35, "right", "center"),
    (0.4, 1.0, "left", "bottom"),
    (0.4, -1.0, "left", "top"),
    (-0.4, 1.0, "right", "bottom"),
    (-0.4, -1.0, "right", "top"),
)


def _line_to(figure: Figure, ax: Axes, mark: tuple[float, float], note: Annotation) -> np.ndarray:
    """Places on the line from a mark to its label, in pixels, `[9, 2]`."""
    start = ax.transData.transform(mark)
    end = start + np.asarray(note.get_position()) * figure.dpi / 72
    return start + (end - start) * np.linspace(0.1, 0.9, 9)[:, None]


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return outer.x0 <= inner.x0 and outer.x1 >= inner.x1 and outer.y0 <= inner.y0 and outer.y1 >= inner.y1
