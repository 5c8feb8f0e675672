"""`order_index`: the place of a run in the order of starting, over all launches of a sweep."""

from __future__ import annotations

import os
import threading

from experiments.results import ResultsFolder


class InProcess:
    """Where one process starts all runs. A run that is done again gets a new place, and its old one is forgotten."""

    def __init__(self, results: ResultsFolder) -> None:
        self._results = results
        self._taken: dict[str, int] | None = None
        self._lock = threading.Lock()

    def next(self, run_id: str) -> int:
        with self._lock:
            if self._taken is None:
                self._taken = self._results.order_indices()
            taken = [index for other, index in self._taken.items() if other != run_id]
            self._taken[run_id] = index = 1 + max(taken, default=-1)
            return index


class InFolder:
    """Where several machines start runs: a place is a file that only one of them can make.

    Its name is the index; making a file that must not exist yet is atomic on network file systems too. The driver
    removes the files before each launch (`clear`), for then the rows know.
    """

    def __init__(self, results: ResultsFolder) -> None:
        self._results = results
        self._folder = results.path / "order"

    def next(self, run_id: str) -> int:
        with self._results.guarded():
            self._folder.mkdir(exist_ok=True)
            rows = self._results.order_indices()
            claimed = [int(path.name) for path in self._folder.iterdir()]
            index = 1 + max([*claimed, *(taken for other, taken in rows.items() if other != run_id)], default=-1)
            while True:
                try:
                    os.close(os.open(self._folder / str(index), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                    return index
                except FileExistsError:
                    index += 1

    def clear(self) -> None:
        """Forget the claims of runs that left no row; called while nothing runs."""
        with self._results.guarded():
            if self._folder.is_dir():
                for path in self._folder.iterdir():
                    path.unlink()
