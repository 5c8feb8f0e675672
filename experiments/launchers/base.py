"""The launcher seam: where runs run, and how many at a time.

What runs and how often is decided in `sweep.py`, wave by wave; a launcher gets a wave and hands back rows. It runs each
task in a fresh child (`station.py`), tells when each starts, and may not run a task twice.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from experiments.plan import Job
from minivllm.config import require


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The sweep that a launcher works for.

    Args:
        folder: of its results; all machines see it under this path.
        timeout_s: of one run.
        cool_down_s: rest before each run but the first of this machine; elsewhere, where nobody knows what ran there
            just before, before that too.
        measure_peaks: whether each machine's bandwidth and arithmetic are measured first.
    """

    folder: Path
    timeout_s: float
    cool_down_s: float
    measure_peaks: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A run to do, whole: nobody asks the driver for more."""

    job: Job
    # Columns of its row that are known before it starts.
    row: Mapping[str, Any]
    # Of its `cfg.*` columns.
    column_types: Mapping[str, str]
    # Run it even where a complete row lies in the folder.
    again: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A task that has a row, and the row is in the folder."""

    task: Task
    row: dict[str, Any]


class Listener(Protocol):
    """Told of runs as they go, possibly from several threads."""

    def resting(self, job: Job) -> None: ...

    def point_started(self, job: Job) -> None: ...

    def within_point(self, job: Job, done: int, total: int, tokens_per_s: float) -> None: ...

    def warn(self, message: str) -> None: ...


class Launcher(Protocol):
    """Made with `site` and `listener`, beside its own keys."""

    # Of `design.launcher`.
    name: str

    @property
    def num_at_once(self) -> int:
        """Runs that may share a machine at one time; more than one, and they disturb each other's times."""
        ...

    @property
    def driver_disturbs(self) -> bool:
        """Whether runs go on, on the driver's machine, while it handles the rows that `run` has yielded."""
        ...

    def running(self) -> frozenset[str]:
        """Run ids that an earlier launch started and that still run somewhere; their files must be left alone."""
        ...

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        """Run a wave, each task once, and yield each as it ends.

        Tasks start in the given order as far as the machines allow; closing the iterator ends what runs here.

        Raises:
            ResultsError: the results cannot be written.
        """
        ...

    def close(self) -> None: ...


def required_package(name: str) -> Any:
    """The package of a launcher: launcher, package and extra have one name.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"launcher={name}: {name} is not installed; pip install 'minivllm[{name}]'") from error


def require_count(key: str, value: object) -> None:
    """Raise the one-line ValueError of a key of `launcher` that must be 1 or more."""
    valid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    require(valid, f"launcher.{key}", value, "1 or more")
