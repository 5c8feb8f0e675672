"""The main job: run every point of a plan that is not complete yet, and keep a row of each.

Runs go to the launcher in waves. A wave is as many of the next jobs as can be decided on: whether a repeat by need runs
depends on the finished tables of its point's earlier repeats, and on nothing else, however many run at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from experiments import tables
from experiments.errors import CommandError, one_line
from experiments.launchers.base import Done, Launcher, Site, Task
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


def run_sweep(
    plan: SweepPlan, progress: Progress, *, again: bool = False, report: Callable[[], None] | None = None
) -> Swept:
    """Run a plan.

    Args:
        plan: what to run.
        progress: who is told.
        again: run also what is complete.
        report: called when all have run, before the tracker gets the sweep as a whole.

    Raises:
        CommandError: the launcher or the tracker cannot be made.
        ResultsError: the results folder cannot be used. What was complete before stays so.
    """
    with opened(plan, progress) as runner:
        may_come = runner.take_up(plan.jobs, again=again)
        todo = runner.num_todo(plan.jobs)
        progress.start(len(plan.jobs) - may_come, len(plan.jobs) - todo, may_come)
        rows = runner.run(plan.jobs, tables.column_types(job.config for job in plan.jobs), again=again)
        if report is not None:
            report()
        runner.finish()
        return Swept(rows=tuple(rows), tracking_s=tuple(runner.tracking_s))


@contextmanager
def opened(plan: SweepPlan, progress: Progress) -> Iterator[Runner]:
    """Hold a plan's folder, and end with all that was started in it."""
    results = ResultsFolder(plan.folder)
    with results.held():
        site = Site(
            folder=results.path,
            timeout_s=plan.timeout_s,
            cool_down_s=plan.design.cool_down_s,
            measure_peaks=plan.design.measure_peaks,
        )
        try:
            launcher: Launcher = plan.launcher.make("launcher", site=site, listener=progress)
            with closing(launcher):
                results.clean(progress.warn, running=launcher.running())
                tracker: Tracker = plan.tracker.make("tracking", folder=results.path, sweep=plan.name)
                with closing(tracker):
                    yield Runner(plan, progress, results, launcher, tracker)
        except CommandError:
            raise
        except ValueError as error:
            raise CommandError(one_line(error)) from error


class Runner:
    """Runs jobs of one sweep, as often as it is asked."""

    def __init__(
        self, plan: SweepPlan, progress: Progress, results: ResultsFolder, launcher: Launcher, tracker: Tracker
    ) -> None:
        self._plan, self._progress, self._results = plan, progress, results
        self._launcher, self._tracker = launcher, tracker
        # Of every job that was ever taken up; None where it has not run.
        self._rows: dict[str, dict[str, Any] | None] = {}
        self._configs: dict[str, dict[str, Any]] = {}
        # Points that need no more repeats.
        self._settled: set[str] = set()
        self._repeats_of: dict[str, list[Job]] = {}
        self._told = False
        self.tracking_s: list[float] = []

    def take_up(self, jobs: Sequence[Job], *, again: bool = False) -> int:
        """Look which of them are complete. Returns how many may come, where their points are too uncertain."""
        for job in jobs:
            if job.run_id not in self._rows:
                self._rows[job.run_id] = None if again else self._results.complete_row(job.run_id)
                self._configs[job.run_id] = job.config
                self._repeats_of.setdefault(job.point_id, []).append(job)
        return sum(not job.needed and self._rows[job.run_id] is None for job in jobs)

    def num_todo(self, jobs: Sequence[Job]) -> int:
        return sum(self._rows[job.run_id] is None for job in jobs)

    def run(self, jobs: Sequence[Job], types: dict[str, str], *, again: bool = False) -> list[dict[str, Any]]:
        """Run what is not complete of jobs that were taken up.

        Args:
            jobs: in the order in which they run.
            types: of the `cfg.*` columns.
            again: run also what is complete.

        Returns:
            The rows of those that have one, in their order.
        """
        for job in jobs:
            self._mirror(job.run_id)
        if self._launcher.num_at_once > 1 and self.num_todo(jobs) > 1 and not self._told:
            self._told = True
            self._progress.warn(
                f"launcher={self._launcher.name}: up to {self._launcher.num_at_once} points at a time share a machine "
                "and disturb each other's times: trust counts and quality, not speeds"
            )
        left = deque(jobs)
        while left:
            tasks = [self._task(job, types, again) for job in self._next_wave(left)]
            late = []
            with closing(self._launched(tasks)) as launched:
                for done in launched:
                    job = done.task.job
                    self._rows[job.run_id] = done.row
                    self._progress.point_ended(job, done.row)
                    if self._launcher.driver_disturbs:
                        late.append(job.run_id)
                    else:
                        self._mirror(job.run_id)
            for run_id in late:
                self._mirror(run_id)
        rows = (self._rows[job.run_id] for job in jobs)
        return [row for row in rows if row is not None]

    def finish(self) -> None:
        """Show the sweep as a whole to the tracker."""
        runs = [
            Mirrored(run_id=run_id, config=self._configs[run_id], row=row) for run_id, row in self._rows.items() if row
        ]
        with self._warned(self._plan.name):
            self._tracker.finish(runs)

    def _launched(self, tasks: Sequence[Task]) -> Generator[Done, None, None]:
        yield from self._launcher.run(tasks)

    def _task(self, job: Job, types: dict[str, str], again: bool) -> Task:
        row = {
            "sweep": self._plan.name,
            "run_id": job.run_id,
            "point_id": job.point_id,
            "repeat": job.repeat,
            "design.launcher": self._launcher.name,
            "design.num_at_once": self._launcher.num_at_once,
        }
        return Task(job=job, row=row | self._plan.design.columns | job.repeats.columns, column_types=types, again=again)

    def _next_wave(self, left: deque[Job]) -> list[Job]:
        """Take as many jobs off as can be decided on, and return those that are to run."""
        wave: list[Job] = []
        points: set[str] = set()
        while left:
            job = left[0]
            if self._rows[job.run_id] is None:
                if not job.needed:
                    if job.point_id in points:
                        break
                    if not self._is_wanted(job):
                        left.popleft()
                        continue
                    self._progress.needed_after_all()
                points.add(job.point_id)
                wave.append(job)
            left.popleft()
        return wave

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

    def _mirror(self, run_id: str) -> None:
        """Show a run to the tracker."""
        row = self._rows[run_id]
        if row is None:
            return
        started_s = time.perf_counter()
        with self._warned(run_id):
            self._tracker.record(Mirrored(run_id=run_id, config=self._configs[run_id], row=row))
        self.tracking_s.append(time.perf_counter() - started_s)

    @contextmanager
    def _warned(self, what: str) -> Iterator[None]:
        """The tables are written: whatever happens to their mirror is a warning."""
        try:
            yield
        # A mirror is other people's code and other people's servers.
        except Exception as error:  # noqa: BLE001
            self._progress.warn(f"{what}: its tables are written, its mirror is not: {one_line(error, 200)}")
