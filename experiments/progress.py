"""What a person sees while a sweep runs: a live line on a terminal, one quiet line a point elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as LiveProgress

from experiments.plan import Job


class Progress:
    """Told of a sweep as it goes.

    Args:
        console: a terminal gets a live line.
        name: of the sweep.
    """

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._live: LiveProgress | None = None
        self._total = self._done = self._ran = 0
        # Repeats that may still come, where their points turn out too uncertain.
        self._open = 0
        self._ran_s = 0.0
        # Run id -> when it started, of those that run now.
        self._running: dict[str, float] = {}

    def start(self, total: int, complete: int, may_come: int = 0) -> None:
        """Told once: runs that there will be, those that are complete already, and those that there may be besides."""
        self._total, self._done, self._open = total, complete, may_come
        note = f", {complete} of them complete already" if complete else ""
        note += f", and up to {may_come} more repeats where they are needed" if may_come else ""
        self._console.print(f"{escape(self._name)}: {total} points{note}", highlight=False)
        if self._console.is_terminal and complete < total:
            self._live = LiveProgress(
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                # More often would take time from what is measured.
                refresh_per_second=4,
                transient=True,
            )
            self._task = self._live.add_task("", total=total, completed=complete)
            self._live.start()

    def start_search(self, num_trials: int, num_points: int) -> None:
        """Told once, instead of `start`: trials, and points that there are to choose from."""
        self._console.print(f"{escape(self._name)}: {num_trials} trials of {num_points} points", highlight=False)

    def start_capacity(self, num_points: int, rate_key: str) -> None:
        """Told once, instead of `start`: points, and the key of the rate that is looked for."""
        self._console.print(f"{escape(self._name)}: capacity of {num_points} points by {rate_key}", highlight=False)

    def found_more(self, total: int, complete: int, may_come: int = 0) -> None:
        """As `start`, of the runs of the next trials."""
        self._total += total
        self._done += complete
        self._open += may_come

    def needed_after_all(self) -> None:
        """A repeat that might have come does."""
        self._open -= 1
        self._total += 1
        if self._live is not None:
            self._live.update(self._task, total=self._total)

    def no_more_repeats(self, job: Job, repeats: int, why: str) -> None:
        """A point is done with before its last repeat.

        Args:
            job: the first that does not run.
            repeats: that do not.
            why: in words.
        """
        self._open -= repeats
        label = job.label or job.point_id
        self._console.print(f"enough    {label}: {why}", highlight=False, markup=False, soft_wrap=True)

    def resting(self, job: Job) -> None:
        self._show(job, "cooling down")

    def point_started(self, job: Job) -> None:
        self._running[job.run_id] = time.monotonic()
        self._show(job, "loading")

    def within_point(self, job: Job, done: int, total: int, tokens_per_s: float) -> None:
        self._show(job, f"{done}/{total} requests, {tokens_per_s:,.0f} tok/s")

    def _show(self, job: Job, now: str) -> None:
        if self._live is None:
            return
        left = "?"
        if self._ran:
            at_once = max(1, len(self._running))
            seconds = self._ran_s / self._ran * (self._total - self._done) / at_once
            left = f"{int(seconds // 60)}:{int(seconds % 60):02d}"
        label = job.label or job.run_id
        more = f", {self._open} more repeats may come" if self._open else ""
        self._live.update(self._task, description=f"{label} r{job.repeat}: {now}; {left} left{more}")

    def point_ended(self, job: Job, row: Mapping[str, Any]) -> None:
        self._done += 1
        self._ran += 1
        # One that ran elsewhere tells by its row.
        started_s = self._running.pop(job.run_id, None)
        self._ran_s += row["wall_s"] if started_s is None else time.monotonic() - started_s
        if row["status"] == "ok":
            what = f"{row['output_throughput_tps'] or 0:,.0f} tok/s, TTFT p50 {row['ttft_p50_s'] or 0:.3f} s"
            style = "default"
        else:
            what, style = f"{row['error_type']}: {row['error_message']}", "red"
        label = " ".join(filter(None, (job.label, f"r{job.repeat}")))
        total = f"{self._total} to {self._total + self._open}" if self._open else f"{self._total}"
        line = f"[{self._done}/{total}] {row['status']:<7} {label}: {what} ({row['wall_s']:.1f} s)"
        if self._live is not None:
            self._live.update(self._task, completed=self._done)
        self._console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        self._console.print(f"warning: {message}", style="yellow", highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
