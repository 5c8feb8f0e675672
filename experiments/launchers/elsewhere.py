"""Runs on machines that share nothing with the driver but the results folder: what launchers to such machines share.

The driver sends an errand, the machine does it, and rows come back. Either may die meanwhile. The driver knows a run
that sent no word by the row that it left; a machine that does a run holds a lock for as long, so that no other does it
beside it, whoever sent that one: a lock goes with its process, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from experiments import environment, tables
from experiments.errors import ResultsError
from experiments.launchers.base import Site, Task
from experiments.order import InFolder
from experiments.plan import Job
from experiments.results import ResultsFolder
from experiments.station import Station

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Errand:
    """Tasks for another machine, and what it must know of the driver to do them as the driver would.

    Args:
        site: the sweep.
        tasks: one after the other.
        paths: the driver's `sys.path`: there and here one name is one class, the user's own too.
        cwd: the driver's current folder, from which relative paths of a config go.
        mark: what the results folder's mark reads, where the driver is.
    """

    site: Site
    tasks: tuple[Task, ...]
    paths: tuple[str, ...]
    cwd: str
    mark: str

    def run(self) -> dict[str, dict[str, Any]]:
        """Run the tasks on this machine. Returns their rows by run id.

        Raises:
            ResultsError: the results cannot be written, or the folder here is not the driver's.
        """
        sys.path[:] = [*self.paths, *(path for path in sys.path if path not in self.paths)]
        if Path(self.cwd).is_dir():
            os.chdir(self.cwd)
        results, listener = ResultsFolder(self.site.folder), _Log()
        if _read_mark(results) != self.mark:
            raise ResultsError(f"{results.path}: not the driver's folder; all machines must see it under this path")
        station = Station(self.site, listener, alone=False)
        rows = {}
        has_run = False
        try:
            for task in self.tasks:
                run_id = task.job.run_id
                with _held(results, run_id):
                    # An errand whose driver died may have done it since.
                    row = None if task.again else results.complete_row(run_id)
                    if row is None:
                        station.prepare([task])
                        # Another errand may have run here just before; within one the station sees to it.
                        if not has_run and self.site.cool_down_s:
                            listener.resting(task.job)
                            time.sleep(self.site.cool_down_s)
                        has_run = True
                        row = station.run(task)
                rows[run_id] = row
        finally:
            station.close()
        return rows


class Sender:
    """The driver's side: makes errands, and answers for tasks of which no word came back.

    Args:
        site: the sweep.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._results = ResultsFolder(site.folder)
        # Run id -> when the row began that lay there before the task was sent.
        self._before: dict[str, Any] = {}
        with self._results.guarded():
            if _read_mark(self._results) is None:
                tables.write_text(_mark_path(self._results), uuid.uuid4().hex)
        mark = _read_mark(self._results)
        assert mark is not None
        self._mark = mark

    def errand(self, tasks: Sequence[Task]) -> Errand:
        for task in tasks:
            row = self._results.row(task.job.run_id)
            self._before[task.job.run_id] = None if row is None else row["started_at"]
        return Errand(site=self._site, tasks=tuple(tasks), paths=tuple(sys.path), cwd=str(Path.cwd()), mark=self._mark)

    def row_without_word(self, task: Task, *, error_type: str, why: str) -> dict[str, Any]:
        """The row that a task left, if it came to that; one that says why it did not, if not. Either is on the disk.

        Raises:
            ResultsError: the folder does not take it.
        """
        run_id = task.job.run_id
        if run_id in self._before:
            left = self._results.row(run_id)
            is_its = left is not None and left["started_at"] != self._before[run_id]
        else:
            # An earlier launch sent it: what lay there before is not known, but it was not complete.
            left = self._results.complete_row(run_id)
            is_its = left is not None
        if left is not None and is_its:
            return left
        row = dict(task.row) | environment.moment()
        row |= {"status": "crashed", "error_type": error_type, "error_message": why}
        row |= {"started_at": datetime.now(timezone.utc), "wall_s": 0.0}
        self._results.write_failed(row, task.job.config, task.column_types)
        return row

    def running(self) -> frozenset[str]:
        """Run ids that some machine is at. What others left of their locks is removed."""
        found = set()
        with self._results.guarded():
            for path in _locks(self._results).glob("*"):
                lock = _locked(path, wait=False)
                if lock is None:
                    found.add(path.name)
                else:
                    path.unlink()
                    os.close(lock)
        return frozenset(found)

    def forget_places(self) -> None:
        """Of runs that claimed one and left no row; while nothing runs."""
        InFolder(self._results).clear()


def at_most(
    most: int, started: Iterator[T], ended: Callable[[Sequence[T]], Iterable[T]], flying: Iterable[T] = ()
) -> Iterator[T]:
    """Keep some in flight, and yield each that has ended.

    Args:
        most: in flight at one time.
        started: starts the next when it is asked for it.
        ended: waits, and tells which of those in flight have ended; none is an answer too.
        flying: already.
    """
    flying = [*flying]
    while True:
        flying += islice(started, max(0, most - len(flying)))
        if not flying:
            return
        for one in [*ended(flying)]:
            flying.remove(one)
            yield one


def _mark_path(results: ResultsFolder) -> Path:
    return results.path / ".mark"


def _read_mark(results: ResultsFolder) -> str | None:
    path = _mark_path(results)
    return path.read_text(encoding="utf-8") if path.exists() else None


def _locks(results: ResultsFolder) -> Path:
    return results.path / "running"


def _locked(path: Path, *, wait: bool) -> int | None:
    """Lock a file, made where there is none; None where another holds it and `wait` is false.

    Who holds the lock removes the file before letting go, so that a lock counts only while the file is at its place.
    """
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass
        os.close(lock)


@contextmanager
def _held(results: ResultsFolder, run_id: str) -> Iterator[None]:
    """Wait until nobody else is at this run, and keep others from it."""
    path = _locks(results) / run_id
    with results.guarded():
        path.parent.mkdir(exist_ok=True)
        lock = _locked(path, wait=True)
    assert lock is not None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


class _Log:
    """Tells the log of whoever runs the errand."""

    def resting(self, job: Job) -> None:
        print(f"{job.run_id}: cooling down", flush=True)

    def point_started(self, job: Job) -> None:
        print(f"{job.run_id}: started", flush=True)

    def within_point(self, job: Job, done: int, total: int, tokens_per_s: float) -> None:
        pass

    def warn(self, message: str) -> None:
        print(f"warning: {message}", flush=True)
