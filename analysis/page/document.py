"""Which sections a page has, and the page around them. A section without anything to say is not there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.answer import Answer, answer
from analysis.baseline import knobs
from analysis.caveats import caveats
from analysis.columns import OK
from analysis.load import Sweep
from analysis.metrics import METRICS
from analysis.page import sections
from analysis.page.load_curves import load_curves
from analysis.page.markup import esc, figure, section
from analysis.page.series import MAX_TIMELINES, distributions, frontier, interactions, timelines
from analysis.page.verdicts import effects_section, first_screen
from analysis.plots import shown
from analysis.style import COLOURS, COLOURS_ON_DARK
from analysis.summary import measured_requests
from analysis.views import pivot

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("svg.js", "panel.js", "page.js")
MAX_INTERACTION_PLOTS = 3
MAX_LEVELS = 10


def page(sweep: Sweep, points: pd.DataFrame, found: Answer | None = None) -> str:
    """The whole page.

    Args:
        sweep: from `analysis.load`.
        points: from `analysis.points`.
        found: from `analysis.answer.answer`, which is asked where None.
    """
    found = found or answer(sweep)
    title = ", ".join(dict.fromkeys(points["sweep"])) or sweep.folders[0].resolve().name
    main, changes = found.metric, found.changes
    sentences = found.sentences or _lone(points)
    said = [*caveats(sweep, points), *(found.verdicts[0].caveats if found.verdicts else ())]
    by_label = {label: i for i, label in enumerate(shown(points)["label"])}
    parts = {
        "effects": effects_section(changes, main, _interaction_plots(sweep, changes)),
        "frontier": _frontier(points, by_label),
        "latency": _latency(sweep, points, by_label),
        "load": _load(sweep, points),
        "time": _time(sweep, points, by_label),
        "points": sections.points_section(points),
        "memory": sections.memory_section(sweep, points),
        "resources": sections.resources_section(sweep, points),
        "failed": sections.failed_section(sweep),
        "caveats": sections.caveats_section(said),
        "variants": sections.variants_section(sweep),
        "environment": sections.environment_section(sweep),
        "definitions": sections.definitions_section(points),
    }
    first = f'<p class="swept">{sections.swept_line(sweep, points)}</p>{first_screen(found.verdicts, sentences)}'
    return _document(title, _meta(sweep), first, {key: part for key, part in parts.items() if part}, len(set(said)))


def _lone(points: pd.DataFrame) -> Sequence[str]:
    """Of a single point there is no ratio: its figures are the answer."""
    finished = points[points["num_repeats"] > 0]
    if finished.empty:
        return ["No run finished, so there are no figures: see the reasons below."]
    if len(finished) > 1:
        return ["No baseline finished, so there are figures of each point and no ratios between them."]
    row = finished.iloc[0]
    said = ", ".join(
        f"{metric.title} **{metric.text(row[metric.column])}** {metric.unit}".strip()
        for metric in METRICS
        if metric.key and pd.notna(row[metric.column])
    )
    alone = "One point has nothing to be compared with" if len(points) == 1 else "Only one point finished"
    return [f"{row['label']}: {said}." if said else f"{row['label']} finished without figures.", f"{alone}."]


def _frontier(points: pd.DataFrame, by_label: Mapping[str, int]) -> str:
    spec = frontier(points, METRICS, dict(by_label))
    note = "Choose any two metrics. Marks are means, whiskers reach from the smallest to the largest repeat."
    return section("frontier", "Pareto frontier", figure(spec) if spec else "", note)


def _latency(sweep: Sweep, points: pd.DataFrame, by_label: Mapping[str, int]) -> str:
    spec = distributions(measured_requests(sweep), dict(by_label))
    note = "All requests of all repeats: a curve further left is faster, and where it bends late is the tail."
    return section(
        "latency", "Latency distributions", figure(spec) if spec else "", note + _some(points, len(by_label))
    )


def _load(sweep: Sweep, points: pd.DataFrame) -> str:
    made = load_curves(sweep, points)
    if made is None:
        return ""
    note = "Along a line load grows; where latency climbs and throughput does not, the engine is saturated."
    note += f" {made[1]} more lines are not shown." if made[1] else ""
    return section("load", "Throughput and latency under load", figure(made[0]), note)


def _time(sweep: Sweep, points: pd.DataFrame, by_label: Mapping[str, int]) -> str:
    spec = timelines(sweep, dict(by_label))
    note = "The first finished repeat of each point; of long runs the peak of each stretch of time."
    ran = int((points["num_repeats"] > 0).sum())
    if ran > MAX_TIMELINES:
        note += f" Shown: {MAX_TIMELINES} of {ran} points, the first of those that other plots show."
    return section("time", "Over a run", figure(spec) if spec else "", note)


def _interaction_plots(sweep: Sweep, changes: pd.DataFrame | None) -> str:
    """Of the pairs of knobs with the largest interactions."""
    if changes is None:
        return ""
    pairs = changes[changes["kind"] == "interaction"]
    order = np.log(pairs["ratio"].astype(float)).abs().sort_values(ascending=False, kind="stable").index
    tables = []
    known = knobs(sweep)
    for one, two in dict.fromkeys(zip(pairs.loc[order, "knob"], pairs.loc[order, "knob2"], strict=True)):
        if one not in known or two not in known:
            continue
        means = pivot(sweep, rows=one, columns=two, metric=changes.attrs["metric"])
        # Numbers along the axis, names as lines; the longer one along the axis where both are alike.
        if _is_ordered(means.index) > _is_ordered(means.columns):
            means, one, two = means.T, two, one
        if max(means.shape) <= MAX_LEVELS and means.notna().any().any():
            metric = next(m for m in METRICS if m.column == changes.attrs["metric"])
            tables.append((two, one, metric, means))
        if len(tables) == MAX_INTERACTION_PLOTS:
            break
    spec = interactions(tables)
    said = "Means over all other settings, on a logarithmic scale: lines that are parallel do not interact."
    return figure(spec, said) if spec else ""


def _is_ordered(index: pd.Index) -> bool:
    return bool(pd.api.types.is_numeric_dtype(index.infer_objects()) and not pd.api.types.is_bool_dtype(index))


def _some(points: pd.DataFrame, left: int) -> str:
    finished = int((points["num_repeats"] > 0).sum())
    return f" Shown: {left} of {finished} points, the baseline and the fastest." if left < finished else ""


def _meta(sweep: Sweep) -> str:
    """When, on what, and of which commit, as far as it was one and the same."""
    runs = sweep.runs
    parts = []
    started = pd.to_datetime(runs["started_at"], utc=True, errors="coerce").dropna()
    if len(started):
        parts.append(f"{started.min():%Y-%m-%d %H:%M} UTC")
    for column, text in (
        ("env.gpu", "{}"),
        ("env.cpu", "{}"),
        ("env.git_sha", "commit {:.10}"),
        ("env.torch", "torch {}"),
    ):
        values = runs[column].dropna().unique() if column in runs else []
        if len(values) == 1:
            parts.append(text.format(str(values[0])))
    failed = int((runs["status"] != OK).sum())
    if failed:
        parts.append(f"{failed} of {len(runs)} runs failed")
    return " · ".join(parts)


def _document(title: str, meta: str, first: str, parts: Mapping[str, str], num_caveats: int) -> str:
    names = {key: _heading(part) for key, part in parts.items()}
    if "caveats" in names:
        names["caveats"] += f" ({num_caveats})"
    links = "".join(f'<a href="#{key}">{esc(name)}</a>' for key, name in names.items())
    script = "".join(_asset(name) for name in _SCRIPTS)
    body = (
        f'<header><h1>{esc(title)}</h1><div class="meta">{esc(meta)}</div>'
        f'<button id="theme" type="button">light / dark</button></header>'
        f"{first}<nav>{links}</nav>{''.join(parts.values())}"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Whatever a label holds, nothing is fetched and nothing but our script runs.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:\">"
        # Without an icon of its own a browser asks a server for one.
        f'<link rel="icon" href="data:,"><title>{esc(title)}</title>'
        f"<style>{_asset('page.css')}{_colours()}</style></head>\n<body>{body}<script>{script}</script></body></html>\n"
    )


def _colours() -> str:
    """The palette as variables, for light and dark; paper is light."""
    light, dark = ("".join(f"--c{i}:{c};" for i, c in enumerate(palette)) for palette in (COLOURS, COLOURS_ON_DARK))
    tones = (
        "--paper:#15171a;--ink0:#e9eaec;--soft:#a7adb4;--faint:#70767d;--rule:#2d3136;--wash:#1e2125;"
        f"--good:{COLOURS_ON_DARK[0]};--bad:{COLOURS_ON_DARK[1]};--flat:#8d9399;--band:#262a2f;--floor:#4a3f1d;color-scheme:dark;"
    )
    return (
        f":root{{{light}}}@media screen{{:root[data-theme=dark]{{{dark}{tones}}}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}{tones}}}}}"
    )


def _heading(part: str) -> str:
    found = re.search(r"<h2>(.*?)</h2>", part)
    assert found is not None
    return found.group(1).replace("&amp;", "&")


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
