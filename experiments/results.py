"""The folder of a sweep: who may write to it, what in it is complete, and what a killed run left behind."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from omegaconf import OmegaConf

from experiments import tables
from experiments.errors import ResultsError, one_line

Warn = Callable[[str], None]
# Tables that a run writes before its row.
_WITH_RUN = ("requests", "steps", "quality")
# What `quality.reference` keeps for the points.
REFERENCES = ".reference"


class ResultsFolder:
    """`runs/<sweep>`, held by one sweep at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, see that it can be written, and keep other sweeps out until the end.

        Raises:
            ResultsError: it cannot be written, or another sweep holds it.
        """
        with self.guarded():
            for name in ("runs", "requests", "steps", "configs", "logs"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            # The lock goes with the process, however it ends; the file stays.
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ResultsError(
                    f"{self.path}: another sweep is writing here; wait for its end, or choose another sweep.name"
                ) from error
            with self.guarded():
                # As much as a large run's tables: a full disk is better found before than after an hour of running.
                tables.write_text(self.path / "runs" / ".probe", "x" * 1_000_000)
                (self.path / "runs" / ".probe").unlink()
            yield
        finally:
            os.close(lock)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Any failure to write is one line that names the folder."""
        try:
            yield
        except ResultsError:
            raise
        except OSError as error:
            raise self.unusable(error.strerror or one_line(error), full=error.errno == errno.ENOSPC) from error

    def unusable(self, reason: str, *, full: bool = False) -> ResultsError:
        hint = "free some space" if full else "make it writable"
        return ResultsError(f"{self.path}: results cannot be written: {reason}; {hint}, or choose another sweep.folder")

    def table_path(self, table: str, run_id: str) -> Path:
        return self.path / table / f"{run_id}.parquet"

    def log_path(self, run_id: str) -> Path:
        return self.path / "logs" / f"{run_id}.log"

    def clean(self, warn: Warn, *, running: Collection[str] = ()) -> None:
        """Remove what killed runs left: temporary files, and tables without a row. Corrupt files are set aside.

        Args:
            warn: is told of those.
            running: run ids that are being written elsewhere, and are left alone.
        """
        with self.guarded():
            for leftover in self.path.glob("*/.*.tmp"):
                # Those of the references belong to no run; elsewhere one may be on its way.
                if leftover.parent.name == REFERENCES:
                    continue
                # As `tables.write_table` names it.
                if leftover.name[1:].partition(".")[0] not in running:
                    leftover.unlink()
            for table in ("runs", *_WITH_RUN):
                for path in sorted((self.path / table).glob("*.parquet")):
                    self._set_aside_if_corrupt(path, warn)
            for table in _WITH_RUN:
                for path in (self.path / table).glob("*.parquet"):
                    if path.stem not in running and not self.table_path("runs", path.stem).exists():
                        path.unlink()

    def _set_aside_if_corrupt(self, path: Path, warn: Warn) -> None:
        try:
            tables.read_table(path)
        except (pa.ArrowException, OSError) as error:
            aside = self.path / "corrupt" / path.parent.name / path.name
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, aside)
            warn(f"{path}: not readable as parquet ({one_line(error, 80)}); moved to {aside}, its run starts again")

    def row(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run, however it ended."""
        path = self.table_path("runs", run_id)
        found: dict[str, Any] | None = tables.read_table(path).to_pylist()[0] if path.exists() else None
        return found

    def complete_row(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run that ended well, with all its tables; None where it is still to be done."""
        row = self.row(run_id)
        whole = all(self.table_path(table, run_id).exists() for table in ("requests", "steps"))
        return row if row is not None and row["status"] == "ok" and whole else None

    def order_indices(self) -> dict[str, int]:
        """Run id -> place in the order of running, of all runs that have a row."""
        with self.guarded():
            rows = {path.stem: tables.read_table(path) for path in (self.path / "runs").glob("*.parquet")}
        found = {run_id: row["order_index"][0].as_py() for run_id, row in rows.items()}
        return {run_id: index for run_id, index in found.items() if index is not None}

    def write_config(self, run_id: str, config: Mapping[str, Any]) -> None:
        with self.guarded():
            tables.write_text(self.path / "configs" / f"{run_id}.yaml", OmegaConf.to_yaml(dict(config)))

    def write_failed(self, row: Mapping[str, Any], config: Mapping[str, Any], types: Mapping[str, str]) -> None:
        """A run that left no row of its own; tables of an earlier try go, for they are not its."""
        with self.guarded():
            for table in _WITH_RUN:
                self.table_path(table, row["run_id"]).unlink(missing_ok=True)
            tables.write_table(self.table_path("runs", row["run_id"]), tables.runs_table(row, config, types))

    def drop_empty_log(self, run_id: str) -> None:
        log = self.log_path(run_id)
        if log.exists() and log.stat().st_size == 0:
            log.unlink()
