"""The table at the end of a sweep: one line a point, its repeats together."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.plan import Job


def print_summary(console: Console, jobs: Sequence[Job], rows: Sequence[Mapping[str, Any]]) -> None:
    """Medians over the repeats of each point, and its throughput over the first point's.

    Speed-ups compare the same repeat of both points, which ran the same requests.
    """
    points: dict[str, list[tuple[Job, Mapping[str, Any]]]] = {}
    for job, row in zip(jobs, rows, strict=True):
        points.setdefault(job.point_id, []).append((job, row))
    baseline = {job.repeat: row for job, row in next(iter(points.values()))}
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("point", overflow="fold")
    for name in ("runs", "tok/s", "TTFT p50", "TPOT p50", "speed-up"):
        table.add_column(name, justify="right")
    for runs in points.values():
        done = [row for _, row in runs if row["status"] == "ok"]
        failed = sorted({row["status"] for _, row in runs} - {"ok"})
        count = f"{len(done)}/{len(runs)}" + (f" {', '.join(failed)}" if failed else "")
        table.add_row(
            escape(runs[0][0].label or runs[0][0].point_id),
            count,
            _median(done, "output_throughput_tps", "{:,.0f}"),
            _median(done, "ttft_p50_s", "{:.3f} s"),
            _median(done, "tpot_p50_s", "{:.4f} s"),
            _speed_up(runs, baseline),
            style="" if done else "red",
        )
    console.print(table)


def overhead_line(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Where the time of a run goes beside loading and measuring, in medians."""
    done = [row for row in rows if row["status"] == "ok"]
    if not done:
        return None
    parts = {name: statistics.median(row[f"{name}_s"] for row in done) for name in ("startup", "warmup", "record")}
    rest = statistics.median(
        row["wall_s"] - row["load_s"] - row["duration_s"] - sum(row[f"{name}_s"] for name in parts) for row in done
    )
    listed = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
    load_s = statistics.median(row["load_s"] for row in done)
    return f"harness, median s a point: {listed}, rest {rest:.2f}; model loading {load_s:.2f}"


def _median(rows: Sequence[Mapping[str, Any]], column: str, form: str) -> str:
    known = [row[column] for row in rows if row[column] is not None]
    return form.format(statistics.median(known)) if known else "-"


def _speed_up(runs: Sequence[tuple[Job, Mapping[str, Any]]], baseline: Mapping[int, Mapping[str, Any]]) -> str:
    ratios = []
    for job, row in runs:
        base = baseline.get(job.repeat)
        if base is not None and row["status"] == base["status"] == "ok" and base["output_throughput_tps"]:
            ratios.append(row["output_throughput_tps"] / base["output_throughput_tps"])
    return f"{statistics.geometric_mean(ratios):.2f}x" if ratios and min(ratios) > 0 else "-"
