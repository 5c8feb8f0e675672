"""What a reader asks first: what did each component buy me? The verdicts, the effects, and both in a sentence or two.

Every report (page, Markdown, terminal) shows what is made here, so that they say the same. A sentence marks its figures
with `**`, as Markdown does.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import speculation_words
from analysis.columns import OK
from analysis.comparison import compare
from analysis.factors import effects
from analysis.load import Sweep
from analysis.metrics import METRICS, THROUGHPUT, Metric
from analysis.naming import BASELINE, VARIANT, axes, short_names
from analysis.noise import aa_groups, noise_floor
from analysis.planning import LEVEL
from analysis.precision_words import sentences_of
from analysis.precisions import precision
from analysis.quality_figures import has_quality
from analysis.scheduling_answer import Scheduling, scheduling_answer
from analysis.speculation_rows import has_speculation
from analysis.speculations import speculation
from analysis.summary import numbers
from analysis.values import repeats_of
from analysis.verdicts import NOT_MEASURED, TOO_FEW
from analysis.words import many, ratio_text

# Words for a difference that was told from chance.
TOLD = ("faster", "slower", "better", "worse", "less", "more")
MAX_NAMED = 4
_LOAD = re.compile(r"\.(request_rate_rps|rate_rps|concurrency)$")
# Comparing hundreds of points takes seconds a metric: of so many, only the main metrics are compared.
MANY_POINTS = 100
# Knobs of so many values make more pairs of changes than anybody reads.
MANY_CHANGES = 60


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Verdicts:
    """All points against their baselines in one metric.

    Args:
        metric: that was compared.
        table: of `analysis.compare`, best first; several baselines one after the other.
        noise_floor: ratio less 1, NaN without A/A points.
        caveats: of the comparison.
    """

    metric: Metric
    table: pd.DataFrame
    noise_floor: float
    caveats: tuple[str, ...]

    @property
    def higher_is_better(self) -> bool | None:
        """None where neither is."""
        return self.table.attrs["higher_is_better"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """What every report begins with.

    Args:
        verdicts: the main metric's first; none where there is nothing to compare.
        changes: what the knobs do to the main metric, from `knob_effects`.
        sentences: both in words, after what there is to say of precisions, of drafters and of policies.
        precisions: from `analysis.precision`; None where no quality was measured.
        speculation: from `analysis.speculation`; None where no point drafts.
        scheduling: of policies; None where neither they nor the rate of arrivals were varied.
    """

    verdicts: tuple[Verdicts, ...]
    changes: pd.DataFrame | None
    sentences: tuple[str, ...]
    precisions: pd.DataFrame | None = None
    speculation: pd.DataFrame | None = None
    scheduling: Scheduling | None = None

    @property
    def metric(self) -> Metric:
        """The main one: output throughput, or the first that was measured."""
        return self.verdicts[0].metric if self.verdicts else THROUGHPUT

    @property
    def caveats(self) -> tuple[str, ...]:
        """Of the tables of drafters and of policies."""
        drafters = [] if self.speculation is None else self.speculation.attrs["caveats"]
        policies = [] if self.scheduling is None else self.scheduling.caveats
        return (*drafters, *policies)


def answer(sweep: Sweep) -> Answer:
    """Of a sweep of any kind; empty where it has one point, or none that finished."""
    found = all_verdicts(sweep)
    changes = knob_effects(sweep, found[0].metric if found else THROUGHPUT)
    load = load_knob(sweep)
    components = changes
    if changes is not None and load is not None:
        # More load is no component, and has a plot of its own.
        components = changes[changes["knob"] != short_names(axes(sweep))[load]]
    precisions = precision(sweep) if has_quality(sweep) else None
    drafters = speculation(sweep) if has_speculation(sweep) else None
    sentences = [] if precisions is None else sentences_of(precisions)
    sentences += [] if drafters is None else speculation_words.sentences_of(drafters)
    policies = scheduling_answer(sweep)
    sentences += [] if policies is None else policies.sentences
    sentences += headline(found[0] if found else None, components)
    return Answer(
        verdicts=tuple(found),
        changes=changes,
        sentences=tuple(sentences),
        precisions=precisions,
        speculation=drafters,
        scheduling=policies,
    )


def load_knob(sweep: Sweep) -> str | None:
    """The column of `runs` that says how much load there was, if it was varied."""
    for column in axes(sweep):
        if _LOAD.search(column) and numbers(sweep.runs[column]).dropna().nunique() > 1:
            return column
    return None


def all_verdicts(sweep: Sweep, metrics: Sequence[Metric] = METRICS) -> list[Verdicts]:
    """Verdicts on every metric that has ratios; none where there is nothing to compare.

    Args:
        sweep: from `analysis.load`.
        metrics: in the order in which they are wanted.
    """
    made = []
    many = sweep.runs["point_id"].nunique() > MANY_POINTS
    for metric in metrics:
        # Quality is measured in one repeat: what is known of it stands in the table of precisions.
        found = verdicts(sweep, metric) if not metric.once and (metric.key or not many) else None
        if found is not None and found.table["ratio"].notna().any():
            made.append(found)
    return made


def verdicts(sweep: Sweep, metric: Metric = THROUGHPUT) -> Verdicts | None:
    """None where the metric was not measured, there is but one point, or no baseline."""
    runs = sweep.runs
    if metric.column not in runs or not runs.loc[runs["status"] == OK, metric.column].notna().any():
        return None
    try:
        table = compare(sweep, metric=metric.column, within=_held(sweep))
    except ValueError:
        # No point fits as a baseline: `caveats` say that no point is called so.
        return None
    if table.empty:
        return None
    attrs = table.attrs
    better = attrs["higher_is_better"]
    place = {name: i for i, name in enumerate(dict.fromkeys(table["baseline"]))}
    gain = np.where(better is False, -1.0, 1.0) * table["ratio"].fillna(-math.inf if better is not False else math.inf)
    order = pd.DataFrame({"base": table["baseline"].map(place), "gain": -gain}).sort_values(["base", "gain"]).index
    table = table.loc[order].reset_index(drop=True)
    table.attrs = attrs
    # Not the table's own column: that of A/A points against each other has none.
    values = repeats_of(sweep, metric.column)
    logs = bool((values.min() > 0).all())
    floors = pd.Series([noise_floor(values[group], logs=logs) for group in aa_groups(sweep)], dtype=float).dropna()
    return Verdicts(
        metric=metric,
        table=table,
        noise_floor=float(floors.max()) if len(floors) else math.nan,
        caveats=tuple(attrs["caveats"]),
    )


def knob_effects(sweep: Sweep, metric: Metric = THROUGHPUT) -> pd.DataFrame | None:
    """Effects of the knobs where two or more were varied; None where verdicts say the same or nothing is known."""
    names = axes(sweep)
    if len(names) < 2 or metric.column not in sweep.runs:
        return None
    changes = sum(int(sweep.runs[column].astype(str).nunique()) - 1 for column in names)
    if changes > MANY_CHANGES:
        return None
    try:
        made = effects(sweep, metric=metric.column)
    except ValueError:
        return None
    made = made[made["ratio"].notna()].reset_index(drop=True)
    return made if len(made) else None


def headline(found: Verdicts | None, changes: pd.DataFrame | None) -> list[str]:
    """The answer in at most four sentences.

    Args:
        found: on the main metric.
        changes: from `knob_effects`.
    """
    if found is None:
        return []
    made = []
    what = found.metric.title if found.metric.title != "Output" else "output throughput"
    judged = not found.table["verdict"].isin((TOO_FEW, NOT_MEASURED)).all()
    if changes is not None:
        made += _knobs_in_words(changes, what)
    table = found.table.dropna(subset=["ratio"])
    if len(table):
        bases = list(dict.fromkeys(table["baseline"]))
        against = f"**{bases[0]}**" if len(bases) == 1 else "the baselines at equal settings of the rest"
        counts = Counter(found.table["verdict"])
        if judged:
            said = ", ".join(f"{count} {word}" for word, count in counts.most_common())
            made.append(f"Against {against}, of {many(len(found.table), 'point')}: {said}.")
        # Ratios are worth naming where they were told from the baseline.
        clear = table[table["verdict"].isin(TOLD)] if judged else table
        if len(clear) and (changes is None or not judged or len(bases) > 1):
            size = np.log(clear["ratio"].where(clear["ratio"] > 0)).abs().sort_values(ascending=False, kind="stable")
            parts = [
                f"{row['label']} **{ratio_text(row['ratio'], row['ratio_low'], row['ratio_high'])}**"
                for _, row in clear.loc[size.index[:MAX_NAMED]].iterrows()
            ]
            rest = f"; {len(clear) - MAX_NAMED} more below" if len(clear) > MAX_NAMED else ""
            made.append(f"{what[:1].upper()}{what[1:]}, largest difference first: {', '.join(parts)}{rest}.")
    if not judged:
        most = int(found.table["num_pairs"].max()) if len(found.table) else 0
        why = "One repeat" if most == 1 else f"{most} repeats"
        made.append(
            f"{why} cannot tell a difference from chance: the ratios are what was seen, without verdicts. "
            "Run it again with repeats=5."
        )
    return made


def _knobs_in_words(changes: pd.DataFrame, what: str) -> list[str]:
    """Of each knob what it does most, where that was told from chance; of one repeat, what was seen."""
    main = changes[changes["kind"] == "main"]
    size = np.log(main["ratio"].astype(float)).abs().sort_values(ascending=False, kind="stable")
    main = main.loc[size.index]
    told = main if main["p_holm"].isna().all() else main[main["p_holm"] < LEVEL]
    unsure = [str(knob) for knob in dict.fromkeys(main["knob"]) if knob not in set(told["knob"])]
    parts = [
        f"{row['knob']} {row['reference']} → {row['value']} **{ratio_text(row['ratio'], row['low'], row['high'])}**"
        for _, row in told.drop_duplicates("knob").head(MAX_NAMED).iterrows()
    ]
    made = [f"What each knob does to {what}, all else equal: {'; '.join(parts)}."] if parts else []
    if unsure:
        more = f" and {len(unsure) - MAX_NAMED} more" if len(unsure) > MAX_NAMED else ""
        made.append(f"Averaged over all settings, no effect was shown of {', '.join(unsure[:MAX_NAMED])}{more}.")
    return made


def _held(sweep: Sweep) -> list[str]:
    """Knobs each setting of which has a baseline of its own: all others in a sweep of variants, and how much load there
    was, since more load is no component."""
    columns = axes(sweep)
    names = short_names(columns)
    if VARIANT not in sweep.runs or not (sweep.runs[VARIANT] == BASELINE).any():
        load = load_knob(sweep)
        return [names[load]] if load is not None and len(columns) > 1 else []
    return [names[column] for column in columns if column != VARIANT]
