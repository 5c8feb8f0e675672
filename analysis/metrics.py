"""The main metrics: which column, under what title, in what unit, and what exactly it says."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.columns import DESCRIPTIONS, LATENCIES


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One column of `runs`, and how people read it.

    Args:
        column: of `runs`.
        title: short, for heads of tables and for axes.
        unit: as shown; the empty string for plain numbers.
        scale: shown value = stored value * scale.
        digits: after the point.
        definition: one sentence.
        pooled: for a percentile, the column of `requests` and the quantile. A mean of percentiles is no percentile, so
            over several repeats it is taken from all their requests together.
        key: belongs into a narrow table as well.
        once: computed, and so measured in one repeat of a point.
    """

    column: str
    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 1
    definition: str
    pooled: tuple[str, float] | None = None
    key: bool = False
    once: bool = False

    @property
    def heading(self) -> str:
        """Title and unit, for the head of a column."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float | None) -> str:
        """A value as shown, a dash for null."""
        return "–" if value is None or pd.isna(value) else f"{value * self.scale:,.{self.digits}f}"


def _percentile(latency: str, title: str, quantile: float, digits: int, *, key: bool = False) -> Metric:
    percent = round(quantile * 100)
    return Metric(
        column=f"{latency}_p{percent}_s",
        title=f"{title} p{percent}",
        unit="ms",
        scale=1e3,
        digits=digits,
        definition=f"{percent} % of all requests of all repeats together have a {title} at or under this.",
        pooled=(f"{latency}_s", quantile),
        key=key,
    )


THROUGHPUT = Metric(
    column="output_throughput_tps",
    title="Output",
    unit="tok/s",
    definition="Generated tokens of all finished requests over the duration of the run.",
    key=True,
)
TTFT_P50 = _percentile("ttft", "TTFT", 0.5, 1, key=True)

METRICS: tuple[Metric, ...] = (
    THROUGHPUT,
    TTFT_P50,
    _percentile("ttft", "TTFT", 0.99, 1),
    _percentile("tpot", "TPOT", 0.5, 2, key=True),
    _percentile("tpot", "TPOT", 0.99, 2),
    _percentile("e2e", "E2E", 0.5, 0),
    _percentile("e2e", "E2E", 0.99, 0),
    Metric(
        column="goodput_rps",
        title="Goodput",
        unit="req/s",
        digits=2,
        definition="Requests a second that meet every limit of the SLO.",
    ),
    Metric(
        column="kv_utilization_mean_fraction",
        title="KV use",
        unit="%",
        scale=100,
        definition="Share of the KV pool's blocks in use, mean over the run.",
    ),
    Metric(
        column="prefix_hit_fraction",
        title="Prefix hits",
        unit="%",
        scale=100,
        definition="Share of prompt tokens whose K/V was found in the prefix cache.",
    ),
    Metric(
        column="num_preemptions",
        title="Preemptions",
        definition="Times a running request lost its blocks and had to start again.",
    ),
    Metric(
        column="peak_process_bytes",
        title="Peak memory",
        unit="MiB",
        scale=2**-20,
        digits=0,
        definition="Largest resident memory of the run's process.",
    ),
    Metric(
        column="acceptance_length",
        title="Accepted",
        unit="tok/step",
        digits=2,
        definition="Tokens emitted per verification of drafts, bonus token included.",
    ),
    Metric(
        column="energy_per_output_token_j",
        title="Energy",
        unit="mJ/tok",
        scale=1e3,
        definition="Energy of the run over its generated tokens.",
    ),
    Metric(
        column="perplexity",
        title="Perplexity",
        digits=2,
        definition="exp of the mean negative log likelihood of the held-out text.",
        once=True,
    ),
    Metric(
        column="kl_mean_nats",
        title="KL",
        unit="nats",
        digits=4,
        definition="Mean divergence of the next-token distribution from the unchanged model's.",
        once=True,
    ),
    Metric(
        column="token_agreement_fraction",
        title="Agreement",
        unit="%",
        scale=100,
        definition="Share of greedy tokens equal to the unchanged model's.",
        once=True,
    ),
)


def metric_of(column: str) -> Metric:
    """How people read any column of `runs`, those without an entry above under their own names."""
    known = next((metric for metric in METRICS if metric.column == column), None)
    if known:
        return known
    definition = DESCRIPTIONS["runs"].get(column, f"The column {column} of runs.")
    for latency in LATENCIES:
        if column.startswith(f"{latency}_"):
            title = column.removesuffix("_s").replace("_", " ").replace(latency, latency.upper())
            return Metric(column=column, title=title, unit="ms", scale=1e3, digits=2, definition=definition)
    if column.endswith("_bytes"):
        return Metric(column=column, title=column, unit="MiB", scale=2**-20, digits=1, definition=definition)
    return Metric(column=column, title=column, digits=3, definition=definition)


# Latencies as every table and plot means them.
DEFINITIONS: dict[str, str] = {
    "TTFT": "Time to first token: first token minus arrival, so it contains the wait in the queue.",
    "TPOT": "Time per output token of a request: (finish - first token) / (output tokens - 1); none for one token.",
    "E2E": "End to end: finish minus arrival.",
    "Speed-up": "Output throughput over the baseline's, over the repeats that both finished: the same repeat had the "
    "same workload. In brackets the smallest and the largest ratio of one repeat.",
}
