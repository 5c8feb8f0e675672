"""Which precision should a model run in? Speed, memory and quality of each, side by side.

Speeds vary from repeat to repeat and are compared as everywhere here: paired by repeat, log ratios, a t interval.
Quality is computed and does not vary; its intervals are over windows of text, prompts and tasks, paired by item
(`analysis.item_intervals`). Memory is counted, so its ratios have no intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis import quality_figures
from analysis.baseline import PointKey, Spec
from analysis.columns import OK, POINT_KEY
from analysis.intervals import CONFIDENCE, Paired, paired
from analysis.item_intervals import Interval
from analysis.load import Sweep
from analysis.machine_caveats import column_of
from analysis.metrics import THROUGHPUT, TTFT_P50, Metric, metric_of
from analysis.precision_caveats import caveats_of
from analysis.precision_rows import Row, Rows, rows_of
from analysis.quality_figures import SUMS, TASK_SCORE, Compared, Quality
from analysis.summary import numbers
from analysis.values import repeats_of
from analysis.views import on_front

SPEEDS: tuple[Metric, ...] = (THROUGHPUT, TTFT_P50, metric_of("tpot_p50_s"))
COUNTED = ("bits_per_weight", "weights_bytes", "quantized_bytes", "num_quantized_weights")
_PARTS = ("ratio", "ratio_low", "ratio_high")


def precision(sweep: Sweep, *, baseline: Spec = None, batch: str | None = None) -> pd.DataFrame:
    """Every precision of a sweep, and what it costs and gains against the unquantized one.

    Args:
        sweep: from `analysis.load`.
        baseline: what ratios and differences are to: `quantization=none`, `variant=fp32`, a mapping of the same, or a
            label. Where it fits several rows, each is compared with the one that it shares their differences with. None
            is the variant `baseline`, or the first precision that ran, in each setting of what is not lossy.
        batch: the knob that is the batch size; None looks for concurrency, `max_num_seqs`, a request rate.

    Returns:
        One row a precision, in the order in which they first ran: `sweep label baseline is_baseline num_repeats
        quantization bits_per_weight weights_bytes weights_bytes_ratio quantized_bytes num_quantized_weights`.
        Of each batch size `b`, with `@b` after each name (nothing where there is one size): `output_throughput_tps
        ttft_p50_s tpot_p50_s`, each with `_ratio`, and `on_front`, whether no other row is faster there without
        being worse. `perplexity`, with `_ratio`; `kl_mean_nats top1_agreement_fraction top1_flip_fraction
        token_agreement_fraction task_score_fraction`, with `_difference`; `task_score_p` (McNemar);
        `first_divergence_mean_tokens`; `quality_num_tokens`, of text. Figures of quality, ratios of speed and
        perplexity, and differences have the ends `_low`, `_high` of their 95 % intervals. What is not known is null.
        `.attrs` has `batch`, a column of `runs`, `batch_name`, `sizes`, `front`, the measure of quality that `on_front`
        goes by, and `caveats`, sentences.

    Raises:
        ValueError: no such knob, or a baseline that fits no point.
    """
    rows = rows_of(sweep, baseline, batch)
    quality = quality_figures.quality_of(sweep, [row.points for row in rows.rows])
    made = pd.DataFrame([_named(row, rows) for row in rows.rows], columns=["sweep", "label", "baseline", "is_baseline"])
    parts = [made, _counted(sweep, rows), _speeds(sweep, rows), _qualities(rows, quality)]
    made = pd.concat(parts, axis=1)
    # Divergences tell precisions apart that perplexities do not.
    front = "kl_mean_nats" if made["kl_mean_nats"].notna().sum() > 1 else "perplexity"
    for size in rows.sizes:
        gains = np.stack([made[at(THROUGHPUT.column, size)], -made[front]], axis=1)
        made[at("on_front", size)] = on_front(gains)
    made.attrs = {
        "batch": rows.batch,
        "batch_name": rows.name,
        "sizes": list(rows.sizes),
        "front": front,
        "confidence": CONFIDENCE,
        "caveats": caveats_of(sweep, rows, quality),
    }
    return made


def at(name: str, size: float | None) -> str:
    """The column of a figure at a batch size: `on_front@8`."""
    return name if size is None else f"{name}@{size:g}"


def _named(row: Row, rows: Rows) -> tuple[str, str, str | None, bool]:
    base = None if row.base is None else rows.rows[row.base]
    return row.sweep, row.label, base.label if base else None, base is row


def _counted(sweep: Sweep, rows: Rows) -> pd.DataFrame:
    """What does not depend on the batch size and is the same in every repeat, from the first that finished."""
    finished = sweep.runs[sweep.runs["status"] == OK].set_index(POINT_KEY)
    finished = finished.assign(**{name: numbers(column_of(finished, name)) for name in COUNTED})
    finished["quantization"] = column_of(finished, "quantization")
    by_point = finished[[*COUNTED, "quantization"]].groupby(level=POINT_KEY, sort=False)
    firsts, counts = by_point.first(), by_point.size()
    made = []
    for row in rows.rows:
        own = firsts.reindex(list(row.points.values())).bfill()
        known = {name: own[name].iloc[0] if len(own) else math.nan for name in (*COUNTED, "quantization")}
        made.append({"num_repeats": int(counts.reindex(list(row.points.values())).fillna(0).max()), **known})
    table = pd.DataFrame(made, columns=["num_repeats", "quantization", *COUNTED])
    before = [math.nan if row.base is None else table["weights_bytes"].iloc[row.base] for row in rows.rows]
    table.insert(4, "weights_bytes_ratio", table["weights_bytes"].astype(float) / pd.Series(before, dtype=float))
    return table


def _speeds(sweep: Sweep, rows: Rows) -> pd.DataFrame:
    """Means over repeats, of each run's own median where it is a latency: what ratios are of."""
    columns: dict[str, list[float]] = {}
    for metric in SPEEDS:
        table = repeats_of(sweep, metric.column)
        values = {key: table[key].to_numpy(dtype=float) for key in table.columns}
        for size in rows.sizes:
            name = at(metric.column, size)
            columns[name] = [_mean(values[row.points[size]]) if size in row.points else math.nan for row in rows.rows]
            found = [_against(values, row, rows, size) for row in rows.rows]
            for part in _PARTS:
                columns[at(f"{metric.column}_{part}", size)] = [getattr(one, part) for one in found]
    return pd.DataFrame(columns, dtype=float)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _against(values: Mapping[PointKey, np.ndarray], row: Row, rows: Rows, size: float | None) -> Paired:
    """Over the repeats that both have."""
    base = None if row.base is None else rows.rows[row.base].points.get(size)
    if base is None or size not in row.points:
        return paired(np.empty(0), np.empty(0))
    own, others = values[row.points[size]], values[base]
    both = np.isfinite(own) & np.isfinite(others)
    return paired(own[both], others[both])


def _qualities(rows: Rows, quality: list[Quality]) -> pd.DataFrame:
    made = []
    for place, (row, own) in enumerate(zip(rows.rows, quality, strict=True)):
        base = None if row.base in (None, place) else quality[row.base]
        task = quality_figures.task_score(own, base)
        found = {
            "perplexity": quality_figures.perplexity(own, base),
            **{name: quality_figures.mean(own, base, name) for name in SUMS},
            TASK_SCORE: task,
        }
        if row.base == place:
            found = {name: _itself(one.alone) for name, one in found.items()}
        figures: dict[str, float] = {}
        for name, one in found.items():
            _put(figures, name, one, "ratio" if name == "perplexity" else "difference")
        figures["task_score_p"] = task.p
        figures["first_divergence_mean_tokens"] = quality_figures.first_divergence(own)
        figures["quality_num_tokens"] = own.num_tokens if own.is_measured else math.nan
        made.append(figures)
    empty: dict[str, float] = {}
    _put(empty, "perplexity", Compared(), "ratio")
    for name in (*SUMS, TASK_SCORE):
        _put(empty, name, Compared(), "difference")
    rest = ["task_score_p", "first_divergence_mean_tokens", "quality_num_tokens"]
    return pd.DataFrame(made, columns=[*empty, *rest], dtype=float)


def _itself(alone: Interval) -> Compared:
    """A baseline against itself leaves nothing to chance."""
    if math.isnan(alone.value):
        return Compared()
    same, nothing = Interval(value=1.0, low=1.0, high=1.0), Interval(value=0.0, low=0.0, high=0.0)
    return Compared(alone=alone, ratio=same, difference=nothing)


def _put(figures: dict[str, float], name: str, found: Compared, against: str) -> None:
    other: Interval = getattr(found, against)
    for prefix, interval in ((name, found.alone), (f"{name}_{against}", other)):
        figures |= {prefix: interval.value, f"{prefix}_low": interval.low, f"{prefix}_high": interval.high}


def interval_of(row: Mapping[str, float] | pd.Series, name: str) -> Interval:
    """A figure of a row with its interval, from a frame of `precision`."""
    return Interval(value=row[name], low=row[f"{name}_low"], high=row[f"{name}_high"])


def is_nothing(ratio: Interval) -> bool:
    """Whether a ratio of 1 is within its interval: no measurable difference."""
    return ratio.known and ratio.low <= 1 <= ratio.high
