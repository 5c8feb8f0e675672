"""One run at a time on this machine: nothing shares its cores, and the driver sleeps while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from experiments.launchers.base import Done, Listener, Site, Task
from experiments.station import Station


class LocalLauncher:
    """Takes no keys of its own."""

    name = "local"
    num_at_once = 1
    driver_disturbs = False

    def __init__(self, *, site: Site, listener: Listener) -> None:
        self._station = Station(site, listener)

    def running(self) -> frozenset[str]:
        return frozenset()

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        self._station.prepare(tasks)
        for task in tasks:
            yield Done(task=task, row=self._station.run(task))

    def close(self) -> None:
        self._station.close()
