"""The main job: run every point of a plan that is not complete yet, one after the other, and keep a row of each."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from experiments import environment, peaks, tables
from experiments.child import Order
from experiments.errors import CommandError, one_line
from experiments.launch import Ended, Launcher
from experiments.plan import Job, SweepPlan
from experiments.progress import Progress
from experiments.repeats import relative_half_width
from experiments.results import ResultsFolder
from experiments.tracking.base import Mirrored, Tracker


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """What a sweep left: the `runs` row of every job, in the plan's order, and the seconds each mirror took."""

    rows: tuple[dict[str, Any], ...]
    tracking_s: tuple[float, ...]


def run_sweep(plan: SweepPlan, progress: Progress, *, again: bool = False) -> Swept:
    """Run a plan.

    Args:
        plan: what to run.
        progress: who is told.
        again: run also what is complete.

    Raises:
        CommandError: the tracker cannot be made.
        ResultsError: the results folder cannot be used. What was complete before stays so.
    """
    launcher = Launcher()
    launcher.warm()
    results = ResultsFolder(plan.folder)
    with results.held():
        results.clean(progress.warn)
        tracker = _make_tracker(plan, results)
        try:
            return _Sweep(plan, progress, results, launcher, tracker).run(again)
        finally:
            tracker.close()


def _make_tracker(plan: SweepPlan, results: ResultsFolder) -> Tracker:
    try:
        tracker: Tracker = plan.tracker.make("tracking", folder=results.path, sweep=plan.name)
    except ValueError as error:
        raise CommandError(one_line(error)) from error
    return tracker


class _Sweep:
    def __init__(
        self, plan: SweepPlan, progress: Progress, results: ResultsFolder, launcher: Launcher, tracker: Tracker
    ) -> None:
        self._plan, self._progress, self._results = plan, progress, results
        self._launcher, self._tracker = launcher, tracker
        self._types = tables.column_types(job.config for job in plan.jobs)
        self._host = environment.host()
        self._rows: dict[str, dict[str, Any] | None] = {}
        self._peaks: dict[peaks.Place, dict[str, Any]] = {}
        # Points that need no more repeats.
        self._settled: set[str] = set()
        self._repeats_of: dict[str, list[Job]] = {}
        for job in plan.jobs:
            self._repeats_of.setdefault(job.point_id, []).append(job)

    def run(self, again: bool) -> Swept:
        jobs, rows = self._plan.jobs, self._rows
        rows |= {job.run_id: None if again else self._results.complete_row(job.run_id) for job in jobs}
        self._order = self._results.order_indices()
        todo = [job for job in jobs if rows[job.run_id] is None]
        may_come = sum(not job.needed for job in todo)
        self._progress.start(len(jobs) - may_come, len(jobs) - len(todo), may_come)
        tracking_s = []
        if todo:
            self._launcher.wait_until_warm()
            self._measure_peaks(todo)
        has_run = False
        for job in jobs:
            row = rows[job.run_id]
            if row is None:
                if not job.needed:
                    if not self._is_wanted(job):
                        continue
                    self._progress.needed_after_all()
                if has_run and self._plan.design.cool_down_s:
                    self._progress.resting(job)
                    time.sleep(self._plan.design.cool_down_s)
                has_run = True
                self._progress.point_started(job)
                row = rows[job.run_id] = self._run(job)
                self._progress.point_ended(job, row)
            started_s = time.perf_counter()
            self._mirror(job, row)
            tracking_s.append(time.perf_counter() - started_s)
        return Swept(rows=tuple(row for row in rows.values() if row is not None), tracking_s=tuple(tracking_s))

    def _measure_peaks(self, todo: Iterable[Job]) -> None:
        """Of every place where a run is to come and that the folder knows nothing of yet."""
        if not self._plan.design.measure_peaks:
            return
        for place in {peaks.Place.of(job.config): None for job in todo if job.invalid is None}:
            file, found = peaks.kept(self._results.path / "peaks", place, self._host)
            if found is None:
                found = self._launcher.measure_peaks(place)
                if found is None:
                    self._progress.warn(f"peaks of execution.device={place.device} are unknown: no MBU and no MFU")
                    continue
                with self._results.guarded():
                    peaks.keep(file, place, found)
            self._peaks[place] = found

    def _is_wanted(self, job: Job) -> bool:
        """Whether the earlier repeats of a point, all of them on the disk, call for this one."""
        if job.point_id in self._settled:
            return False
        rule = job.repeats
        assert rule.metric is not None
        same = self._repeats_of[job.point_id]
        earlier = [self._rows[other.run_id] for other in same if other.repeat < job.repeat]
        values = [row.get(rule.metric) for row in earlier if row is not None and row["status"] == "ok"]
        if rule.wants_more(values):
            return True
        self._settled.add(job.point_id)
        spared = sum(other.repeat >= job.repeat and self._rows[other.run_id] is None for other in same)
        width = relative_half_width(values)
        why = f"{rule.metric} is known to ±{width or 0:.2%} after {len(values)} repeats"
        if len(values) < rule.least:
            why = f"{len(earlier) - len(values)} of {len(earlier)} repeats failed"
        elif width is None:
            why = f"{rule.metric} is null or 0 in one of {len(values)} repeats, so more would decide nothing"
        self._progress.no_more_repeats(job, spared, why)
        return False

    def _next_order_index(self, run_id: str) -> int:
        """Place in the order of running, over all launches of the sweep; a run that is done again gets a new one."""
        index = 1 + max((index for other, index in self._order.items() if other != run_id), default=-1)
        self._order[run_id] = index
        return index

    def _run(self, job: Job) -> dict[str, Any]:
        """Run one job; returns its row, which is on the disk."""
        self._results.write_config(job.run_id, job.config)
        base = self._host | {
            "sweep": self._plan.name,
            "run_id": job.run_id,
            "point_id": job.point_id,
            "repeat": job.repeat,
            "order_index": self._next_order_index(job.run_id),
        }
        base |= self._plan.design.columns | job.repeats.columns
        started_at_s = time.time()
        if job.invalid is not None:
            ended = Ended(status="invalid", error_type="ValueError", error_message=job.invalid)
        else:
            ended = self._launcher.run(
                Order(
                    config=job.config,
                    row=base,
                    column_types=self._types,
                    folder=str(self._results.path),
                    log=str(self._results.log_path(job.run_id)),
                    started_at_s=started_at_s,
                    peaks=self._peaks.get(peaks.Place.of(job.config)),
                ),
                timeout_s=self._plan.timeout_s,
                on_progress=self._progress.within_point,
            )
        if ended.unwritable is not None:
            raise self._results.unusable(ended.unwritable)
        self._results.drop_empty_log(job.run_id)
        if ended.row is not None:
            return ended.row
        row = (
            base
            | environment.moment()
            | {
                "status": ended.status,
                "error_type": ended.error_type,
                "error_message": ended.error_message,
                "started_at": datetime.fromtimestamp(started_at_s, tz=timezone.utc),
                "wall_s": time.time() - started_at_s,
            }
        )
        self._results.write_failed(row, job.config, self._types)
        return row

    def _mirror(self, job: Job, row: dict[str, Any]) -> None:
        """Show the run to the tracker. The tables are written: whatever happens to their mirror is a warning."""
        try:
            self._tracker.record(Mirrored(run_id=job.run_id, config=job.config, row=row))
        # A mirror is other people's code and other people's servers.
        except Exception as error:  # noqa: BLE001
            self._progress.warn(f"{job.run_id}: its tables are written, its mirror is not: {one_line(error, 200)}")
