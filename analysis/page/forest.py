"""A table with a ratio plot in its rows: a bar from no difference to the ratio, its interval, and the noise floor.

The plot is drawn here, as SVG whose places are percentages of the column's width: it fits any window and any paper, and
no label can run into another, since labels are cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.page.markup import esc

_HEIGHT = 26


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One ratio.

    Args:
        cells: words and figures before the plot, as HTML.
        ratio, low, high: ends are NaN where there is no interval.
        tone: `good`, `bad` or `flat`, for its colour.
        verdict: after the plot.
        base: a baseline, at 1 by definition.
    """

    cells: tuple[str, ...]
    ratio: float
    low: float = math.nan
    high: float = math.nan
    tone: str = "flat"
    verdict: str = ""
    base: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Forest:
    """A table of ratios.

    Args:
        name: of the file that it may be saved as.
        title: what the ratios are of.
        head: of the cells before the plot; the first column is words, the others are figures.
        rows: in order.
        band: of equality, as a ratio less 1; drawn light.
        floor: the noise floor, as a ratio less 1; drawn where known.
        reference: what 1 is.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    band: float = 0.0
    floor: float = math.nan
    reference: str = "baseline"

    @property
    def is_judged(self) -> bool:
        """Whether any row has a verdict."""
        return any(row.verdict for row in self.rows)


def forest(plot: Forest) -> str:
    """The table, as HTML."""
    head, rows, band, floor, reference = plot.head, plot.rows, plot.band, plot.floor, plot.reference
    left, right = domain(rows)
    scale = _Scale(math.log(left), math.log(right))
    ticks = ratio_ticks(left, right)
    grid = "".join(f'<line class="grid{" one" if t == 1 else ""}" {scale.line(t)}/>' for t in ticks)
    bands = scale.rect("band", 1 / (1 + band), 1 + band) if band else ""
    if not math.isnan(floor):
        bands += scale.rect("floor", 1 / (1 + floor), 1 + floor)
    judged = plot.is_judged
    heads = "".join(f"<th{'' if i == 0 else ' class=num'}>{_head(text)}</th>" for i, text in enumerate(head))
    heads += f'<th class="mid">ratio to the {esc(reference)}<small>bar: estimate, line: 95 % interval</small></th>'
    heads += "<th>verdict</th>" if judged else ""
    lines = []
    for row in rows:
        cells = "".join(f"<td{'' if i == 0 else ' class=num'}>{cell}</td>" for i, cell in enumerate(row.cells))
        drawn = f'<td class="draw">{_svg(grid + bands + _mark(row, scale), _words(row))}</td>'
        word = f'<td class="verdict {row.tone}">{esc(row.verdict)}</td>' if judged else ""
        lines.append(f"<tr{' class=base' if row.base else ''}>{cells}{drawn}{word}</tr>")
    labels = "".join(
        f'<text x="{scale.at(t):.2f}%" y="13" text-anchor="middle">{t:g}×</text>' for t in ticks if 2 < scale.at(t) < 98
    )
    axis = f'<td class="draw axis">{_svg(labels, "")}</td>'
    foot = f"<tfoot><tr>{'<td></td>' * len(head)}{axis}{'<td></td>' if judged else ''}</tr></tfoot>"
    return (
        f'<div class="scroll"><table class="forest" data-name="{esc(plot.name)}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody>{foot}</table></div>"
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """Logarithmic: half and double are equally far from 1."""

    left: float
    right: float

    def at(self, ratio: float) -> float:
        place = (math.log(ratio) - self.left) / (self.right - self.left)
        return 100 * min(1.0, max(0.0, place))

    def line(self, ratio: float) -> str:
        return f'x1="{self.at(ratio):.2f}%" x2="{self.at(ratio):.2f}%" y1="0" y2="{_HEIGHT}"'

    def rect(self, kind: str, low: float, high: float, y: float = 0, height: float = _HEIGHT) -> str:
        width = max(0.0, self.at(high) - self.at(low))
        return f'<rect class="{kind}" x="{self.at(low):.2f}%" width="{width:.2f}%" y="{y:g}" height="{height:g}"/>'


def _mark(row: Row, scale: _Scale) -> str:
    if math.isnan(row.ratio) or row.ratio <= 0:
        return '<text class="none" x="50%" y="17" text-anchor="middle">no figure</text>'
    middle = _HEIGHT / 2
    if row.base:
        return f'<circle class="dot base" cx="{scale.at(1):.2f}%" cy="{middle}" r="4"/>'
    low, high = sorted((1.0, row.ratio))
    made = scale.rect(f"bar {row.tone}", low, high, y=middle - 5, height=10)
    if not math.isnan(row.low):
        a, b = scale.at(max(row.low, 1e-300)), scale.at(row.high)
        made += f'<line class="ends {row.tone}" x1="{a:.2f}%" x2="{b:.2f}%" y1="{middle}" y2="{middle}"/>'
        for end, x, clipped in (("◂", a, _under(row.low, scale)), ("▸", b, _over(row.high, scale))):
            if clipped:
                side = "start" if end == "◂" else "end"
                made += f'<text class="more" x="{x:.2f}%" y="{middle + 4}" text-anchor="{side}">{end}</text>'
            else:
                tick = f'x1="{x:.2f}%" x2="{x:.2f}%" y1="{middle - 4}" y2="{middle + 4}"'
                made += f'<line class="ends {row.tone}" {tick}/>'
    return made + f'<circle class="dot {row.tone}" cx="{scale.at(row.ratio):.2f}%" cy="{middle}" r="4"/>'


def _under(low: float, scale: _Scale) -> bool:
    return low <= 0 or math.log(low) < scale.left


def _over(high: float, scale: _Scale) -> bool:
    return math.log(high) > scale.right


def _words(row: Row) -> str:
    if math.isnan(row.ratio):
        return "no figure"
    ends = "" if math.isnan(row.low) else f", 95 % interval {row.low:.3g} to {row.high:.3g}"
    return f"{row.ratio:.3g} times the baseline{ends}"


def _svg(inside: str, words: str) -> str:
    label = f'role="img" aria-label="{esc(words)}"' if words else 'aria-hidden="true"'
    return f'<svg class="row" width="100%" height="{_HEIGHT}" {label}>{inside}</svg>'


def domain(rows: Sequence[Row]) -> tuple[float, float]:
    """From all ratios, and from their intervals as far as those do not press the ratios together."""
    ratios = [1.0, *(row.ratio for row in rows if row.ratio > 0)]
    low, high = min(ratios), max(ratios)
    reach = max(high / low, 1.2)
    for row in rows:
        if not math.isnan(row.low):
            low, high = min(low, max(row.low, min(ratios) / reach)), max(high, min(row.high, max(ratios) * reach))
    room = max((high / low) ** 0.06, 1.005)
    return low / room, high * room


def ratio_ticks(left: float, right: float) -> list[float]:
    """Round ratios with 1 among them: about five."""
    decades = math.log10(right / left)
    if decades > 1.2:
        steps: tuple[float, ...] = (1,) if decades > 3 else (1, 3) if decades > 2 else (1, 2, 5)
        powers = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
        found = [float(f"{step * 10.0**power:g}") for power in powers for step in steps]
    else:
        wide = (right - left) / 5
        power = 10 ** math.floor(math.log10(wide))
        step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= wide)
        first = math.floor((left - 1) / step)
        found = [float(f"{1 + i * step:.6g}") for i in range(first, math.ceil((right - 1) / step) + 1)]
    return [value for value in found if left <= value <= right]


def _head(text: str) -> str:
    title, _, unit = text.partition("\n")
    return f"{esc(title)}<small>{esc(unit)}</small>" if unit else esc(title)
