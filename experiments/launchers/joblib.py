"""Several runs at a time on this machine, through joblib: for counts and quality, not for speeds.

A worker is a thread of the driver that waits for the fresh child which runs its point. joblib's own worker processes
would only stand between the driver and that child: seconds of imports, and one more process that can die.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from experiments.launchers.base import Done, Listener, Site, Task, require_count, required_package
from experiments.station import Station


class JoblibLauncher:
    """Args:
    n_jobs: runs at a time.
    """

    name = "joblib"
    driver_disturbs = True

    def __init__(self, *, site: Site, listener: Listener, n_jobs: int = 2) -> None:
        require_count("n_jobs", n_jobs)
        self._joblib = required_package("joblib")
        self.num_at_once = n_jobs
        self._station = Station(site, listener)

    def running(self) -> frozenset[str]:
        return frozenset()

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        self._station.prepare(tasks)
        # A task is taken when a thread is free for it, so that tasks start in order.
        parallel = self._joblib.Parallel(
            n_jobs=self.num_at_once,
            backend="threading",
            pre_dispatch="n_jobs",
            batch_size=1,
            return_as="generator_unordered",
        )
        ended = parallel(self._joblib.delayed(self._one)(task) for task in tasks)
        left = len(tasks)
        try:
            for done in ended:
                left -= 1
                yield done
        finally:
            # The driver leaves early, and threads still wait for children.
            if left:
                self._station.close()

    def _one(self, task: Task) -> Done:
        return Done(task=task, row=self._station.run(task))

    def close(self) -> None:
        self._station.close()
