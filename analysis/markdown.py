"""The Markdown report: what was swept, on what, what came out, how to read it, and what speaks against believing it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.answer import Answer
from analysis.caveats import caveats, environment, is_restless
from analysis.columns import POINT_KEY
from analysis.load import Sweep
from analysis.metrics import DEFINITIONS, METRICS, Metric
from analysis.naming import axes, format_value, short_names, variant_differences, varying
from analysis.precision_table import PRECISIONS, STAR, Column, table_of
from analysis.scheduling_table import SCHEDULING
from analysis.speculation_table import SPECULATION, notes_of, tables_of
from analysis.style import MAX_POINTS
from analysis.summary import failures
from analysis.words import many, ratio_text

MAX_EFFECTS = 12

CAPTIONS = {
    "scheduling": "Latency and goodput of each policy against load, a column a setting; whiskers are 95 % intervals "
    "over repeats, and along the dashed line of goodput all that was offered meets the SLO.",
    "scheduling_closer": "Under one load: the share of requests at or under a latency, where a curve further left is "
    "better; fairness and the cost of preemptions; and clients, from the best-served to the worst.",
    "capacity": "The highest rate that meets the SLO; the line ends at the lowest rate that was seen to fail.",
    "fidelity": "Simulated against real, a mark a policy and load: on the dashed line both are the same; the outer two "
    "are as far off as is tolerated.",
    "speculation": "Of each drafter: the share accepted of the drafts at each position that the verdict fell on; the "
    "speed-up of its best point at each batch size, measured (marks, with 95 % intervals) and predicted from measured "
    "costs (dotted); and predicted against measured for every point, the outer lines being 10 % off.",
    "lanes": "One run, a lane a request, by arrival; thin is waiting. Of many requests, those around the one "
    "of the longest end-to-end latency. `analysis.timeline` draws any other run.",
    "quality_against_speed": "Quality against speed, a panel a batch size: down and to the right is better, and the "
    "dashed line joins what nothing beats in both. Whiskers are 95 % intervals of the comparison with the baseline; "
    "what lies on the lower edge diverges by that or less.",
    "output_throughput": "Output throughput of each point, fastest first: bars are means over repeats, whiskers reach "
    "from the slowest to the fastest repeat, and the dashed line is the baseline that speed-ups refer to.",
    "throughput_against_ttft": "Throughput against the median time to first token: up and to the left is better, and "
    "whiskers reach from the smallest to the largest repeat.",
    "latency_distributions": "Share of requests at or under a latency, all repeats together: a curve further left is "
    "faster, and where it bends late is the tail.",
    "kv_use": "Blocks of the KV pool that running requests use (filled) and that are kept for reuse (dotted), over the "
    "first repeat of each point: a pool that stays full makes requests wait or be preempted. Time axes are each run's "
    "own where lengths differ much.",
}
TITLES = {
    "lanes": "One run, request by request",
    "scheduling": "Policies under load",
    "scheduling_closer": "Policies under one load",
    "capacity": "Capacity",
    "fidelity": "Simulated against real",
    "speculation": "Speculation: acceptance, speed-up and prediction",
    "quality_against_speed": "Quality against speed",
    "output_throughput": "Output throughput",
    "throughput_against_ttft": "Throughput against TTFT",
    "latency_distributions": "Latency distributions",
    "kv_use": "KV cache use",
}


def markdown(sweep: Sweep, points: pd.DataFrame, plots: Mapping[str, str], found: Answer | None = None) -> str:
    """The whole report.

    Args:
        sweep: from `analysis.load`.
        points: from `analysis.points`.
        plots: name of each plot, and its file relative to the report.
        found: from `analysis.answer.answer`; the report has no verdicts where None.
    """
    title = ", ".join(dict.fromkeys(points["sweep"])) or sweep.folders[0].resolve().name
    parts = [
        f"# {title}",
        *_sentences(found),
        _swept(sweep, points),
        _scheduling(found),
        _speculation(found),
        _precisions(found),
    ]
    parts += [_results(points), *_answers(found)]
    parts += [_failed(sweep), _caveats(sweep, points, found)]
    parts += [_plot(name, file, points) for name, file in plots.items()]
    parts += [_environment(sweep), _definitions(points)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sentences(found: Answer | None) -> Sequence[str]:
    return found.sentences if found else ()


def _precisions(found: Answer | None) -> str:
    """Quality beside speed and memory, where quality was measured."""
    shown = table_of(found.precisions) if found and found.precisions is not None else None
    if shown is None:
        return ""
    names = [
        f"**{label}**" if is_base and len(shown.labels) > 1 else label
        for label, is_base in zip(shown.labels, shown.is_base, strict=True)
    ]
    return "\n\n".join([f"## {PRECISIONS}", " ".join(shown.notes), _cells("precision", names, shown.columns)])


def _speculation(found: Answer | None) -> str:
    """Every drafter, a table a setting, where anything was drafted."""
    if found is None or found.speculation is None or found.speculation.empty:
        return ""
    parts = [f"## {SPECULATION}"]
    for shown in tables_of(found.speculation):
        parts += [f"### {shown.setting}"] if shown.setting else []
        parts.append(_cells("drafter", shown.labels, shown.columns))
    return "\n\n".join([*parts, *notes_of(found.speculation)])


def _scheduling(found: Answer | None) -> str:
    """Who wins where, and all policies under one load, where policies or the rate were varied."""
    if found is None or found.scheduling is None or not found.scheduling.tables:
        return ""
    parts = [f"## {SCHEDULING}"]
    for shown in found.scheduling.tables:
        parts += [f"### {shown.title}", _cells(shown.what, shown.labels, shown.columns)]
    return "\n\n".join([*parts, *found.scheduling.notes])


def _cells(what: str, names: Sequence[str], columns: Sequence[Column]) -> str:
    """A table of cells: a figure, starred where it is the best, over its small lines."""
    rows = []
    for place, name in enumerate(names):
        cells = [column.cells[place] for column in columns]
        texts = [f"**{cell.text}** {STAR}" if cell.is_best else cell.text for cell in cells]
        below = ["".join(f"<br>{line}" for line in cell.small) for cell in cells]
        rows.append([name, *(text + more for text, more in zip(texts, below, strict=True))])
    return _table(
        [what, *(f"{column.title} ({column.unit})" if column.unit else column.title for column in columns)], rows
    )


def _answers(found: Answer | None) -> list[str]:
    """Verdicts on the main metric, and the effects, in short form: both under the heading of the results."""
    if found is None or not found.verdicts:
        return []
    first = found.verdicts[0]
    table = first.table
    several = table["baseline"].nunique() > 1
    rows = []
    for _, row in table.iterrows():
        ratio = ratio_text(row["ratio"], row["ratio_low"], row["ratio_high"])
        against = [row["baseline"]] if several else []
        rows.append([row["label"], *against, str(row["num_pairs"]), ratio, row["verdict"]])
    base = "" if several else f" Against **{table['baseline'].iloc[0]}**."
    floor = "" if math.isnan(first.noise_floor) else f" Noise floor, from A/A points: {100 * first.noise_floor:.1f} %."
    head = ["point", *(["against"] if several else []), "pairs", "ratio [95 % interval]", "verdict"]
    made = [f"### Verdicts\n\n{first.metric.heading}.{base}{floor}", _table(head, rows)]
    if found.changes is not None:
        changes = found.changes
        size = changes["ratio"].astype(float).map(lambda ratio: abs(math.log(ratio)))
        few = changes.loc[size.sort_values(ascending=False, kind="stable").index[:MAX_EFFECTS]].sort_index()
        rows = [_effect(row) for _, row in few.iterrows()]
        made.append("### Effects\n\n" + _table(("change", "ratio [95 % interval]", "n"), rows))
        if len(few) < len(changes):
            made.append(f"The {len(few)} largest of {len(changes)}.")
    return made


def _effect(row: pd.Series) -> list[str]:
    what = f"`{row['knob']}` {row['reference']} → {row['value']}"
    if row["kind"] == "interaction":
        what += f" × `{row['knob2']}` {row['reference2']} → {row['value2']}"
    return [what, ratio_text(row["ratio"], row["low"], row["high"]), str(row["n"])]


def measured(points: pd.DataFrame) -> list[Metric]:
    """The metrics of which there is any figure."""
    return [metric for metric in METRICS if points[metric.column].notna().any()]


def range_text(metric: Metric, row: pd.Series) -> str:
    """`99.8 to 102.9`: the smallest and the largest repeat; nothing for one repeat."""
    low, high = row[f"{metric.column}_min"], row[f"{metric.column}_max"]
    return f"{metric.text(low)} to {metric.text(high)}" if row["num_repeats"] > 1 and pd.notna(low) else ""


def failed_points(sweep: Sweep) -> list[tuple[str, str, str, str]]:
    """Label, repeats, status and reason of what did not finish; repeats that failed alike share a row."""
    grouped = failures(sweep).groupby(["label", "status", "reason"], sort=False, dropna=False)["repeat"]
    return [
        (label, ", ".join(str(repeat) for repeat in repeats), str(status), reason)
        for (label, status, reason), repeats in grouped
    ]


def _swept(sweep: Sweep, points: pd.DataFrame) -> str:
    ok = int((points["num_repeats"] > 0).sum())
    repeats = int((points["num_repeats"] + points["num_failed"]).max()) if len(points) else 0
    counts = (
        f"{many(len(points), 'point')}, {many(repeats, 'repeat')} each: {ok} of the points gave results, "
        f"{len(points) - ok} failed."
    )
    firsts = sweep.runs.drop_duplicates(POINT_KEY)
    kept = axes(sweep)
    names = short_names(kept)
    rows = [(f"`{column.removeprefix('cfg.')}`", _values(firsts[column])) for column in kept]
    tables = [_table(("axis", "values"), rows)] if rows else ["All runs had one and the same configuration."]
    followers = [column for column in varying(sweep) if column not in kept]
    differences = variant_differences(sweep)
    if differences:
        tables.append("What each variant changes:\n\n" + _variants(differences))
    elif followers:
        which = ", ".join(f"`{column.removeprefix('cfg.')}`" for column in followers[:12])
        more = f" and {len(followers) - 12} more" if len(followers) > 12 else ""
        tables.append(f"Following from {', '.join(names.values())}: {which}{more}.")
    return "\n\n".join(["## What was swept", counts, *tables])


def _variants(differences: Mapping[str, Sequence[str]]) -> str:
    rows = [(name, ", ".join(f"`{one}`" for one in found) or "nothing") for name, found in differences.items()]
    return _table(("variant", "differs in"), rows)


def _results(points: pd.DataFrame) -> str:
    finished = points[points["num_repeats"] > 0]
    if finished.empty:
        return "## Results\n\nNo run finished, so there are no figures."
    metrics = measured(finished)
    compared = len(finished) > 1 and finished["speedup"].notna().any()
    # The speed-up stands beside what it is a ratio of.
    place = 3 if metrics and metrics[0] is METRICS[0] else 2
    head = ["point", "n", *(metric.heading for metric in metrics)]
    rows = []
    for _, row in finished.iterrows():
        label = f"**{row['label']}**" if row["is_baseline"] and compared else row["label"]
        cells = [label, str(row["num_repeats"]), *(_cell(metric, row) for metric in metrics)]
        rows.append([*cells[:place], _speedup(row), *cells[place:]] if compared else cells)
    if compared:
        head.insert(place, "Speed-up")
    note = "Means over n repeats (percentiles over their pooled requests); in brackets the smallest and largest repeat."
    bold = " The baseline is bold." if compared else ""
    return "\n\n".join(["## Results", _table(head, rows), note + bold])


def _cell(metric: Metric, row: pd.Series) -> str:
    spread = range_text(metric, row) if metric.key else ""
    return f"{metric.text(row[metric.column])} [{spread}]" if spread else metric.text(row[metric.column])


def _speedup(row: pd.Series) -> str:
    if pd.isna(row["speedup"]):
        return "–"
    if row["is_baseline"] or row["speedup_min"] == row["speedup_max"]:
        return f"{row['speedup']:.2f}×"
    return f"{row['speedup']:.2f}× [{row['speedup_min']:.2f} to {row['speedup_max']:.2f}]"


def _plot(name: str, file: str, points: pd.DataFrame) -> str:
    some = ("throughput_against_ttft", "latency_distributions")
    room = 8 if name == "kv_use" else MAX_POINTS if name in some else math.inf
    ok = int((points["num_repeats"] > 0).sum())
    more = f" Shown: {room} of {ok} points, the baseline and the fastest." if ok > room else ""
    return f"## {TITLES[name]}\n\n![{TITLES[name]}]({file})\n\n*{CAPTIONS[name]}{more}*"


def _failed(sweep: Sweep) -> str:
    rows = failed_points(sweep)
    return "## Failed\n\n" + _table(("point", "repeat", "status", "reason"), rows) if rows else ""


def _caveats(sweep: Sweep, points: pd.DataFrame, found: Answer | None) -> str:
    lines = [*caveats(sweep, points), *(found.caveats if found else ())]
    return "## Caveats\n\n" + ("\n".join(f"- {line}" for line in lines) if lines else "None found.")


def _environment(sweep: Sweep) -> str:
    rows = []
    for name, counts in environment(sweep).items():
        if len(counts) == 1:
            value = next(iter(counts))
        elif is_restless(name):
            values = pd.to_numeric(pd.Series(list(counts)), errors="coerce")
            value = f"{values.min():g} to {values.max():g}" if values.notna().all() else ", ".join(counts)
        else:
            value = "**differs**: " + ", ".join(f"{value} ({many(count, 'run')})" for value, count in counts.items())
        rows.append((f"`{name}`", value))
    return "## Environment\n\n" + (_table(("what", "value"), rows) if rows else "Not recorded.")


def _definitions(points: pd.DataFrame) -> str:
    lines = [f"- **{name}**: {text}" for name, text in DEFINITIONS.items()]
    lines += [f"- **{metric.title}**: {metric.definition}" for metric in measured(points) if metric.pooled is None]
    lines.append("- **p50, p99**: that percentage of all requests of all repeats together is at or under the figure.")
    return "## Definitions\n\n" + "\n".join(lines)


def _values(column: pd.Series) -> str:
    texts = list(dict.fromkeys(format_value(value) for value in column))
    more = f", ... ({len(texts)} values)" if len(texts) > 16 else ""
    return ", ".join(texts[:16]) + more


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell would end the cell."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
