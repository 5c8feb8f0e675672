"""What is compared of schedulers: columns of `runs`, and a few that are made here of `requests`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.columns import DESCRIPTIONS, RUN_KEY
from analysis.load import Sweep
from analysis.machine_caveats import column_of
from analysis.metrics import THROUGHPUT, Metric
from analysis.summary import numbers


def _latency(name: str, title: str, part: str, digits: int) -> Metric:
    what = "mean over requests" if part == "mean" else f"{part[1:]} % of a run's requests are at or under it"
    return Metric(
        column=f"{name}_{part}_s",
        title=f"{title} {part}",
        unit="ms",
        scale=1e3,
        digits=digits,
        definition=f"{title}, {what}; one figure a run.",
    )


def _share(column: str, title: str, definition: str = "") -> Metric:
    return Metric(
        column=column,
        title=title,
        unit="%",
        scale=100,
        definition=definition or DESCRIPTIONS["runs"][column],
    )


def _plain(column: str, title: str, unit: str = "", digits: int = 0, definition: str = "") -> Metric:
    return Metric(
        column=column,
        title=title,
        unit=unit,
        digits=digits,
        definition=definition or DESCRIPTIONS["runs"][column],
    )


# In pairs of mean and p99, which share a plot.
LATENCY_METRICS: tuple[tuple[Metric, Metric], ...] = tuple(
    (_latency(name, title, "mean", digits), _latency(name, title, "p99", digits))
    for name, title, digits in (
        ("ttft", "TTFT", 1),
        ("itl", "ITL", 2),
        ("e2e", "E2E", 0),
        ("normalized_latency", "Latency a token", 2),
    )
)
GOODPUT = _plain("goodput_rps", "Goodput", "req/s", 2, "Requests a second that meet every limit of the SLO.")
ATTAINMENT = _share(
    "slo_attainment_fraction", "SLO attainment", "Share of the offered requests that meet every limit of the SLO."
)
SERVED = _plain("request_throughput_rps", "Served", "req/s", 2, "Finished requests a second.")
LOAD_METRICS = (GOODPUT, ATTAINMENT, THROUGHPUT)
FAIRNESS_METRICS = (
    _plain("service_gap_max_tokens", "Service gap", "tokens"),
    _share("jain_fairness_fraction", "Jain"),
    _share("fluidity_mean_fraction", "Fluidity"),
    _plain("num_preemptions", "Preemptions", definition="Times a running request was put back to wait."),
    _share(
        "recomputed_fraction", "Wasted", "Tokens computed again after preemptions, over all tokens of the requests."
    ),
    _share("prefix_hit_fraction", "Prefix hits", "Share of prompt tokens whose K/V was found in the prefix cache."),
)
SCHEDULING_METRICS: tuple[Metric, ...] = (
    *(metric for pair in LATENCY_METRICS for metric in pair),
    *LOAD_METRICS,
    *FAIRNESS_METRICS,
    SERVED,
)


def with_derived(sweep: Sweep) -> Sweep:
    """The sweep with columns of `runs` that follow from its requests and counts: `normalized_latency_mean_s` and
    `_p99_s` (end-to-end latency over output tokens), and `recomputed_fraction`.

    Source: normalized latency is that of Orca (OSDI'22) and vLLM (2309.06180, section 6.1).
    """
    requests = sweep.requests
    requests = requests[~requests["warmup"].eq(True)]
    tokens = numbers(requests["num_output_tokens"])
    latency = (numbers(requests["e2e_s"]) / tokens.where(tokens > 0)).dropna()
    by_run = latency.groupby([requests.loc[latency.index, key] for key in RUN_KEY])
    runs = sweep.runs
    keys = pd.MultiIndex.from_frame(runs[RUN_KEY])
    made = {
        "normalized_latency_mean_s": by_run.mean().reindex(keys).to_numpy(),
        "normalized_latency_p99_s": by_run.quantile(0.99).reindex(keys).to_numpy(),
    }
    known = numbers(column_of(runs, "num_prompt_tokens")) + numbers(column_of(runs, "num_output_tokens"))
    wasted = numbers(column_of(runs, "num_recomputed_tokens"))
    made["recomputed_fraction"] = (wasted / known.where(known > 0)).to_numpy(dtype=float)
    kept = {name: values for name, values in made.items() if np.isfinite(np.asarray(values, dtype=float)).any()}
    return replace(sweep, runs=runs.assign(**kept))
