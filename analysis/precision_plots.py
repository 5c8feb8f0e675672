"""What the plots of precisions draw, as plain data in the form of `panel.js` and `analysis.panels`.

Quality against speed, a panel a batch size: perplexity, and divergence, which tells those apart that perplexity does
not. Whiskers are the intervals of the comparison with the baseline, put around each point: those of a perplexity alone
are as wide for all, because the text is as hard for all. And how long greedy outputs stay what the unquantized model's
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import Sweep
from analysis.metrics import THROUGHPUT
from analysis.precision_rows import rows_of
from analysis.precisions import at, interval_of
from analysis.quality_figures import GENERATION, quality_of
from analysis.style import MAX_POINTS
from analysis.views import on_front

Spec = dict[str, Any]

# Panels, and names in a panel, that there is room for; of more points the frontier and the baselines have names.
MAX_PANELS = 6
MAX_NAMED = 8
# Divergences under this are what rounding leaves of nothing.
_ROUNDING = 1e-6
MEASURES = {
    "precisions": ("perplexity", "perplexity"),
    "precisions-kl": ("kl_mean_nats", "KL divergence (nats)"),
}
CAPTIONS = {
    "precisions": "Perplexity against speed: down and to the right is better, and the dashed line joins what nothing "
    "beats in both. Whiskers are 95 % intervals of the comparison with the baseline, cut where they leave the plot.",
    "precisions-kl": "Divergence from the unquantized model against speed. What lies on the lower edge diverges by "
    "that or less, as the unquantized model itself does.",
    "precisions-greedy": "Prompts whose greedy output is still the unquantized model's, after so many tokens: quality "
    "as somebody who reads along meets it.",
}


def precision_specs(sweep: Sweep, precisions: pd.DataFrame) -> dict[str, Spec]:
    """Of each plot that has something to show its name and what it draws.

    Args:
        sweep: from `analysis.load`.
        precisions: of it, from `analysis.precision`.
    """
    rows = _shown(precisions)
    rows = rows.assign(label=_brief(rows["label"].tolist()))
    looks = {place: look for look, place in enumerate(rows.index)}
    made: dict[str, Spec] = {}
    for name, (column, title) in MEASURES.items():
        panels = [_against_speed(rows, looks, column, title, size, precisions) for size in _sizes(precisions)]
        known = [panel for panel in panels if panel is not None]
        if known:
            # One alone has the whole width.
            least = 330 if len(known) > 1 else 1200
            made[name] = {"kind": "panels", "least": least, "legend": _legend(rows, looks), "panels": known}
    greedy = _greedy(sweep, rows, looks)
    if greedy:
        made["precisions-greedy"] = greedy
    return made


def _shown(precisions: pd.DataFrame) -> pd.DataFrame:
    """A dozen rows: baselines, those on a frontier, and the fastest."""
    if len(precisions) <= MAX_POINTS:
        return precisions
    sizes = precisions.attrs["sizes"]
    front = precisions[[at("on_front", size) for size in sizes]].any(axis=1)
    speed = precisions[at(THROUGHPUT.column, sizes[-1])]
    order = pd.DataFrame({"base": precisions["is_baseline"], "front": front, "speed": speed})
    first = order.sort_values(["base", "front", "speed"], ascending=False, kind="stable").index[:MAX_POINTS]
    return precisions.loc[sorted(first)]


def _brief(labels: Sequence[str]) -> list[str]:
    """Where one knob was varied its values say enough: `quantization=int8` is `int8`."""
    parts = [label.partition("=") for label in labels]
    is_one = len({knob for knob, _, _ in parts}) == 1 and all(value and "=" not in value for _, _, value in parts)
    return [value for _, _, value in parts] if is_one and len(labels) > 1 else list(labels)


def _sizes(precisions: pd.DataFrame) -> list[float | None]:
    sizes: list[float | None] = precisions.attrs["sizes"]
    if len(sizes) <= MAX_PANELS:
        return sizes
    return [sizes[i] for i in np.linspace(0, len(sizes) - 1, MAX_PANELS).round().astype(int)]


def _legend(rows: pd.DataFrame, looks: dict[int, int]) -> list[Spec]:
    return [{"name": rows.at[place, "label"], "look": look} for place, look in looks.items()]


def _against_speed(
    rows: pd.DataFrame, looks: dict[int, int], column: str, title: str, size: float | None, precisions: pd.DataFrame
) -> Spec | None:
    speed = at(THROUGHPUT.column, size)
    known = rows[rows[speed].notna() & rows[column].notna()]
    if len(known) < 2 or known[column].nunique() < 2:
        return None
    series = [_mark(row, looks[int(place)], column, size) for place, row in known.iterrows()]
    x, y = (np.array([one[axis][0] for one in series], dtype=float) for axis in ("x", "y"))
    axes = {"x": _across(x), "y": _upwards(column, title, y)}
    for name, middle in (("x", x), ("y", y)):
        _cut(axes[name], name, series, middle)
    front = np.flatnonzero(on_front(np.stack([x, -y], axis=1)))
    front = front[np.argsort(x[front], kind="stable")]
    if len(series) > MAX_NAMED:
        named = {*front.tolist(), *np.flatnonzero(known["is_baseline"]).tolist()}
        series = [{**one, "label": place in named} for place, one in enumerate(series)]
    return {
        "title": "" if size is None else f"{precisions.attrs['batch_name']} {size:g}",
        "height": 280 if len(precisions.attrs["sizes"]) > 1 else 380,
        **axes,
        "series": series,
        "lines": [_steps(x[front], y[front])] if len(front) > 1 else [],
    }


def _mark(row: pd.Series, look: int, column: str, size: float | None) -> Spec:
    """One point; whiskers where its comparison has an interval."""
    speed = row[at(THROUGHPUT.column, size)]
    ratio, *ends = (row[at(f"{THROUGHPUT.column}_{part}", size)] for part in ("ratio", "ratio_low", "ratio_high"))
    across = [speed * end / ratio for end in ends]
    if column == "perplexity":
        found = interval_of(row, "perplexity_ratio")
        up = [row[column] * end / found.value for end in (found.low, found.high)]
    else:
        found = interval_of(row, column)
        up = [found.low, found.high]
    return {
        "name": row["label"],
        "look": look,
        "mark": True,
        "line": False,
        "label": True,
        "x": json_numbers([speed]),
        "y": json_numbers([row[column]]),
        **{end: json_numbers([value]) for end, value in zip(("xlo", "xhi", "ylo", "yhi"), [*across, *up], strict=True)},
    }


def _across(x: np.ndarray) -> Spec:
    return {"label": f"output ({THROUGHPUT.unit}), higher is better", "log": bool(x.max() > 10 * x.min() > 0)}


def _cut(axis: Spec, name: str, series: Sequence[Spec], middle: np.ndarray) -> None:
    """Of two repeats an interval may be so wide that it presses all points together: it ends at the edge then."""
    wide = float(np.ptp(middle))
    if axis.get("log") or not wide:
        return
    low, high = max(0.0, middle.min() - wide), middle.max() + wide
    lows, highs = ([one[f"{name}{end}"][0] for one in series] for end in ("lo", "hi"))
    if any(value is not None and value < low for value in lows):
        axis["min"] = low
    if any(value is not None and value > high for value in highs):
        axis["max"] = high
    for one, least, most in zip(series, lows, highs, strict=True):
        one[f"{name}lo"] = [None if least is None else max(low, least)]
        one[f"{name}hi"] = [None if most is None else min(high, most)]


def _upwards(column: str, title: str, y: np.ndarray) -> Spec:
    """Logarithmic where figures span more than a factor of ten; a divergence of nothing lies on the lower edge."""
    above = y[y > _ROUNDING] if column == "kl_mean_nats" else y
    # Perplexities differ in their fourth digit.
    axis: Spec = {"label": f"{title}, lower is better", "digits": 3 if column == "kl_mean_nats" else 6}
    if len(above) and above.min() > 0 and (above.max() > 10 * above.min()):
        axis["log"] = True
        if len(above) < len(y):
            axis["min"] = float(f"{above.min() / 2:.1g}")
    return axis


def _steps(x: np.ndarray, y: np.ndarray) -> Spec:
    """The least that each speed costs: of speeds between two points, what the faster one does."""
    across = np.repeat(x, 2)[:-1]
    up = np.repeat(y, 2)[1:]
    return {"x": json_numbers(across), "y": json_numbers(up)}


def _greedy(sweep: Sweep, rows: pd.DataFrame, looks: dict[int, int]) -> Spec | None:
    points = rows_of(sweep).rows
    quality = quality_of(sweep, [points[int(place)].points for place in rows.index])
    series = []
    for (place, look), own in zip(looks.items(), quality, strict=True):
        items = own.items.get(GENERATION)
        if items is None or not items["num_tokens"].notna().any():
            continue
        end = int(items["num_tokens"].max())
        places = np.arange(end + 1)
        # What never diverges does so after the end.
        first = items["first_divergence"].fillna(np.inf).to_numpy()
        same = 100 * (first[None, :] >= places[:, None]).mean(axis=1)
        series.append(
            {"name": rows.at[place, "label"], "look": look, "step": True, "x": places.tolist(), "y": json_numbers(same)}
        )
    if not series:
        return None
    panel = {
        "title": "",
        "height": 260,
        "x": {"label": "generated tokens", "min": 0, "tight": True},
        "y": {"label": "prompts still the same (%)", "min": 0, "max": 104},
        "series": series,
    }
    names = {one["name"] for one in series}
    legend = [one for one in _legend(rows, looks) if one["name"] in names]
    return {"kind": "panels", "least": 500, "legend": legend, "panels": [panel]}


def json_numbers(values: Sequence[float] | np.ndarray | pd.Series) -> list[float | None]:
    """JSON knows no NaN."""
    return [float(f"{value:.8g}") if np.isfinite(value) else None for value in values]
