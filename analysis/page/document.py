"""Which sections a page has, and the page around them. A section without anything to say is not there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from analysis.answer import Answer, answer
from analysis.caveats import caveats
from analysis.columns import OK
from analysis.load import Sweep
from analysis.metrics import METRICS
from analysis.page import sections
from analysis.page.markup import esc, figure, section
from analysis.page.plots import Plots, plots_of
from analysis.page.precisions import precisions_section
from analysis.page.scheduling import scheduling_section
from analysis.page.series import MAX_PLACES, Spec
from analysis.page.speculation import speculation_section
from analysis.page.verdicts import effects_section, first_screen
from analysis.plots import shown
from analysis.precision_plots import CAPTIONS
from analysis.scheduling_plots import CAPTIONS as SCHEDULING_CAPTIONS
from analysis.speculation_plots import CAPTIONS as SPECULATION_CAPTIONS
from analysis.style import COLOURS, COLOURS_ON_DARK

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("svg.js", "panel.js", "timelines.js", "lanes.js", "save.js", "page.js")
_PARALLEL = "Means over all other settings, on a logarithmic scale: lines that are parallel do not interact."


def page(sweep: Sweep, points: pd.DataFrame, found: Answer | None = None) -> str:
    """The whole page.

    Args:
        sweep: from `analysis.load`.
        points: from `analysis.points`.
        found: from `analysis.answer.answer`, which is asked where None.
    """
    found = found or answer(sweep)
    title = ", ".join(dict.fromkeys(points["sweep"])) or sweep.folders[0].resolve().name
    drawn = plots_of(sweep, points, found)
    sentences = found.sentences or _lone(points)
    said = [*caveats(sweep, points), *found.caveats, *(found.verdicts[0].caveats if found.verdicts else ())]
    parts = {
        "scheduling": scheduling_section(found.scheduling, _figures(drawn, SCHEDULING_CAPTIONS)),
        "speculation": speculation_section(found.speculation, _figures(drawn, SPECULATION_CAPTIONS)),
        "precisions": precisions_section(found.precisions, _figures(drawn, CAPTIONS)),
        "effects": effects_section(
            found.changes, found.metric, figure("interactions", drawn.specs.get("interactions"), _PARALLEL)
        ),
        "frontier": _frontier(drawn.specs.get("frontier")),
        "latency": _latency(drawn.specs.get("latency"), points),
        "load": _load(drawn.specs.get("load"), drawn.num_left_out),
        "time": _time(drawn.specs.get("time"), points),
        "lanes": _lanes(drawn.specs.get("lanes")),
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


def _figures(drawn: Plots, captions: Mapping[str, str]) -> str:
    return "".join(figure(name, drawn.specs.get(name), caption) for name, caption in captions.items())


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


def _frontier(spec: Spec | None) -> str:
    note = "Choose any two metrics. Marks are means, whiskers reach from the smallest to the largest repeat."
    return section("frontier", "Pareto frontier", figure("frontier", spec), note)


def _latency(spec: Spec | None, points: pd.DataFrame) -> str:
    note = "All requests of all repeats: a curve further left is faster, and where it bends late is the tail."
    note += _some(points, len(shown(points)))
    return section("latency", "Latency distributions", figure("latency", spec), note)


def _load(spec: Spec | None, num_left_out: int) -> str:
    note = "Along a line load grows; where latency climbs and throughput does not, the engine is saturated."
    note += f" {num_left_out} more lines are not shown." if num_left_out else ""
    return section("load", "Throughput and latency under load", figure("load", spec), note)


def _time(spec: Spec | None, points: pd.DataFrame) -> str:
    if spec is None:
        return ""
    note = "The first finished repeat of each point"
    note += "; of long runs the peak of each stretch of time." if spec["num_steps"] > MAX_PLACES else "."
    drawn, ran = sum(point["on"] for point in spec["points"]), int((points["num_repeats"] > 0).sum())
    if drawn < ran:
        note += f" Drawn at first: {drawn} of {ran} points, the baseline, the best, the worst and those with caveats."
    if len(spec["points"]) < ran:
        note += f" There are {len(spec['points'])} to choose from."
    return section("time", "Over a run", figure("time", spec), note)


def _lanes(spec: Spec | None) -> str:
    note = "A lane a request, by arrival; thin is waiting. Long lanes beside short ones were overtaken or preempted."
    return section("lanes", "One run, request by request", figure("lanes", spec), note)


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
