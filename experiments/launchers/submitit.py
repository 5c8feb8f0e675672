"""Runs as jobs of a cluster, through submitit: Slurm, or processes of this machine with `executor: local`.

All machines see the results folder under one path, and what a job finishes lies there when it ends; the driver only
submits, waits and collects. A job outlives its driver: the next launch finds it by its mark under `submitit/points`,
waits for it, and submits its points to nobody else. To end the jobs of a sweep, use scancel.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from experiments.errors import one_line
from experiments.launchers.base import Done, Listener, Site, Task, require_count, required_package
from experiments.launchers.elsewhere import Sender, at_most
from experiments.results import ResultsFolder
from minivllm.config import require

EXECUTORS = ("slurm", "local")
# Of a job, beside its points: waiting for the machine to import, and writing.
_SPARE_MINUTES = 10


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Submitted:
    """A job and the points that it runs; `tasks` lacks those that a plan no longer has."""

    job: Any
    tasks: list[Task]


class SubmititLauncher:
    """Args:
    executor: `slurm`, or `local` for processes of this machine.
    points_per_job: runs that a job does one after the other.
    max_jobs: submitted and not yet ended, at one time.
    exclusive: ask Slurm for whole machines, so that no other job disturbs a measurement.
    poll_s: between two looks at the jobs.
    parameters: of submitit's `update_parameters`, such as slurm_partition, gpus_per_node, cpus_per_task.
    """

    name = "submitit"

    def __init__(
        self,
        *,
        site: Site,
        listener: Listener,
        executor: str = "slurm",
        points_per_job: int = 1,
        max_jobs: int = 8,
        exclusive: bool = True,
        poll_s: float = 2.0,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        require(executor in EXECUTORS, "launcher.executor", executor, "slurm or local")
        require_count("points_per_job", points_per_job)
        require_count("max_jobs", max_jobs)
        require(isinstance(poll_s, (int, float)) and poll_s > 0, "launcher.poll_s", poll_s, "above 0")
        submitit = required_package("submitit")
        self._listener, self._is_slurm = listener, executor == "slurm"
        self._results, self._sender = ResultsFolder(site.folder), Sender(site)
        self._folder = site.folder / "submitit"
        self._marks = self._folder / "points"
        self._points_per_job, self._max_jobs, self._poll_s = points_per_job, max_jobs, poll_s
        self._job_class: Any = submitit.SlurmJob if self._is_slurm else submitit.LocalJob
        try:
            self._executor: Any = submitit.AutoExecutor(folder=self._folder, cluster=executor)
            minutes = int(points_per_job * site.timeout_s / 60) + _SPARE_MINUTES
            self._executor.update_parameters(name=f"minivllm-{site.folder.name}", timeout_min=minutes)
            if self._is_slurm and exclusive:
                self._executor.update_parameters(slurm_exclusive=True)
            self._executor.update_parameters(**dict(parameters or {}))
        # No sbatch on this machine, or a parameter that submitit does not know.
        except (RuntimeError, NameError, TypeError, AssertionError) as error:
            raise ValueError(f"launcher=submitit: launcher.executor={executor!r}: {one_line(error)}") from error
        self._alone = self._is_slurm and exclusive
        # Read once: what a later launch finds running is what ran when it began.
        self._found = self._still_running()
        # A driver may have died between submitting a job and marking its points.
        self._unmarked = self._sender.running() - self._found.keys()
        if not self.running():
            self._sender.forget_places()

    @property
    def num_at_once(self) -> int:
        return 1 if self._alone else self._max_jobs

    @property
    def driver_disturbs(self) -> bool:
        return not self._is_slurm

    def running(self) -> frozenset[str]:
        return frozenset(self._found) | self._unmarked

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        left = [task for task in tasks if task.job.run_id not in self._found]
        attached = self._attached([task for task in tasks if task.job.run_id in self._found])
        batches = (left[start : start + self._points_per_job] for start in range(0, len(left), self._points_per_job))
        for submitted in at_most(self._max_jobs, map(self._submit, batches), self._ended, attached):
            yield from self._collect(submitted)

    def close(self) -> None:
        """Jobs go on without a driver."""

    def _submit(self, tasks: list[Task]) -> _Submitted:
        with self._results.guarded():
            self._marks.mkdir(parents=True, exist_ok=True)
            job = self._executor.submit(self._sender.errand(tasks).run)
            for task in tasks:
                (self._marks / task.job.run_id).write_text(job.job_id, encoding="utf-8")
        for task in tasks:
            self._listener.point_started(task.job)
        return _Submitted(job=job, tasks=tasks)

    def _ended(self, flying: Sequence[_Submitted]) -> list[_Submitted]:
        ended = [one for one in flying if self._has_ended(one.job)]
        if not ended:
            time.sleep(self._poll_s)
        return ended

    def _collect(self, submitted: _Submitted) -> Iterator[Done]:
        """Rows of a job that has ended; one where it left none."""
        job = submitted.job
        # What it returns says which rows are its own: an earlier try may have left others.
        outcome = job.exception() if job.paths.result_pickle.exists() else None
        rows = job.result() if outcome is None and job.paths.result_pickle.exists() else {}
        why = one_line(outcome, 300) if outcome is not None else "ended without a result: killed, or out of time"
        why = f"job {job.job_id}: {why}; see {self._folder.name}/"
        for task in submitted.tasks:
            row = rows.get(task.job.run_id) or self._sender.row_without_word(task, error_type="JobError", why=why)
            (self._marks / task.job.run_id).unlink(missing_ok=True)
            self._found.pop(task.job.run_id, None)
            yield Done(task=task, row=row)

    def _still_running(self) -> dict[str, str]:
        """Run id -> job id of what an earlier launch submitted and nobody has collected; marks of ended jobs go."""
        found = {}
        for mark in sorted(self._marks.glob("*")):
            job_id = mark.read_text(encoding="utf-8")
            if job_id and not self._has_ended(self._job_class(folder=self._folder, job_id=job_id)):
                found[mark.name] = job_id
            else:
                mark.unlink()
        return found

    def _attached(self, tasks: Sequence[Task]) -> list[_Submitted]:
        by_job: dict[str, list[Task]] = {}
        for task in tasks:
            by_job.setdefault(self._found[task.job.run_id], []).append(task)
            self._listener.point_started(task.job)
        return [
            _Submitted(job=self._job_class(folder=self._folder, job_id=job_id), tasks=members)
            for job_id, members in by_job.items()
        ]

    def _has_ended(self, job: Any) -> bool:
        if self._is_slurm or job._process is not None:
            return bool(job.done())
        # submitit knows a local job by its process; of one that another driver started there is only the number.
        with suppress(psutil.Error):
            process = psutil.Process(int(job.job_id))
            return process.status() == psutil.STATUS_ZOMBIE or "submitit" not in " ".join(process.cmdline())
        return True
