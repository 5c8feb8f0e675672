"""Runs on one machine: fresh children, what the machine is and can do, and a row for whatever becomes of a run.

The driver has one, and so has each job on a cluster. Threads may share it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from experiments import environment, peaks
from experiments.child import Order
from experiments.launch import Children, Ended
from experiments.launchers.base import Listener, Site, Task
from experiments.order import InFolder, InProcess
from experiments.results import ResultsFolder


class Station:
    """Args:
    site: the sweep.
    listener: is told.
    alone: no other machine runs points of this sweep, so that the order of running is known here.
    """

    def __init__(self, site: Site, listener: Listener, *, alone: bool = True) -> None:
        self._site, self._listener = site, listener
        self._results = ResultsFolder(site.folder)
        self._order: InProcess | InFolder = InProcess(self._results) if alone else InFolder(self._results)
        self._peaks: dict[peaks.Place, dict[str, Any]] = {}
        self._has_run = self._is_ready = False
        self._lock = threading.Lock()
        self._children = Children()
        # Imports beside what the caller does next.
        self._children.warm()
        self._host = environment.host()

    def prepare(self, tasks: Sequence[Task]) -> None:
        """What the tasks need once and no run's time should have in it."""
        if not tasks:
            return
        if not self._is_ready:
            self._children.wait_until_warm()
            self._is_ready = True
        if not self._site.measure_peaks:
            return
        places = (peaks.Place.of(task.job.config) for task in tasks if task.job.invalid is None)
        for place in dict.fromkeys(place for place in places if place.device != "simulated"):
            if place in self._peaks:
                continue
            file, found = peaks.kept(self._site.folder / "peaks", place, self._host)
            if found is None:
                found = self._children.measure_peaks(place)
                if found is None:
                    self._listener.warn(f"peaks of execution.device={place.device} are unknown: no MBU and no MFU")
                    continue
                with self._results.guarded():
                    peaks.keep(file, place, found)
            self._peaks[place] = found

    def run(self, task: Task) -> dict[str, Any]:
        """Run a task to its end; returns its row, which is on the disk.

        Raises:
            ResultsError: the folder does not take it.
        """
        job = task.job
        with self._lock:
            is_first, self._has_run = not self._has_run, True
        if not is_first and self._site.cool_down_s:
            self._listener.resting(job)
            time.sleep(self._site.cool_down_s)
        self._listener.point_started(job)
        self._results.write_config(job.run_id, job.config)
        base = self._host | dict(task.row) | {"order_index": self._order.next(job.run_id)}
        started_at_s = time.time()
        ended = self._end_of(task, base, started_at_s)
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
        self._results.write_failed(row, job.config, task.column_types)
        return row

    def _end_of(self, task: Task, base: dict[str, Any], started_at_s: float) -> Ended:
        job = task.job
        if job.invalid is not None:
            return Ended(status="invalid", error_type="ValueError", error_message=job.invalid)
        order = Order(
            config=job.config,
            row=base,
            column_types=dict(task.column_types),
            folder=str(self._results.path),
            log=str(self._results.log_path(job.run_id)),
            started_at_s=started_at_s,
            peaks=self._peaks.get(peaks.Place.of(job.config)),
        )
        return self._children.run(
            order,
            timeout_s=self._site.timeout_s,
            on_progress=lambda *progress: self._listener.within_point(job, *progress),
        )

    def close(self) -> None:
        """End what still runs."""
        self._children.close()
