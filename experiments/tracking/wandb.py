"""Weights & Biases: one run a run of ours, grouped by sweep, its config flattened, its history from `steps`.

It lives in the driver, between the runs: its service takes seconds to start and a core while it works, which no
measurement should share. One service then serves the whole sweep, a few tenths of a second a run.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments import tables
from experiments.tracking.base import Mirrored
from minivllm.config import require

MODES = ("offline", "online")
# Rows of history a run: enough for a curve.
_MAX_ROWS = 200


class WandbTracker:
    """Args:
    project: of W&B.
    mode: `offline` keeps runs under the sweep's folder until `wandb sync`; `online` needs a network and a login.
    folder: of the sweep.
    sweep: its name, the group of its runs.
    """

    def __init__(self, *, folder: Path, sweep: str, project: str = "minivllm", mode: str = "offline") -> None:
        require(mode in MODES, "tracking.mode", mode, "offline or online (tracking=none turns it off)")
        require(isinstance(project, str) and bool(project), "tracking.project", project, "a name")
        self._folder, self._sweep, self._project, self._mode = folder, sweep, project, mode
        # A file a mirrored run, so that a sweep that is taken up again neither repeats nor forgets one.
        self._marks = folder / "wandb" / "mirrored"
        # Its console logger is for scripts that run on their own.
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb
        except ImportError as error:
            raise ValueError("tracking=wandb: wandb is not installed; pip install wandb, or tracking=none") from error
        self._wandb: Any = wandb

    def record(self, run: Mirrored) -> None:
        mark = self._marks / f"{run.run_id}.{run.row['status']}"
        if mark.exists():
            return
        self._marks.mkdir(parents=True, exist_ok=True)
        shown = self._wandb.init(
            project=self._project,
            group=self._sweep,
            name=run.run_id,
            job_type=str(run.row["status"]),
            config={key.removeprefix("cfg."): value for key, value in tables.flatten(run.config).items()},
            dir=str(self._folder),
            reinit="create_new",
            settings=self._wandb.Settings(
                mode=self._mode,
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        try:
            for history in self._history(run.run_id):
                shown.log(history, step=history["step"])
            shown.summary.update({k: _plain(v) for k, v in run.row.items() if v is not None and k != "run_id"})
        finally:
            shown.finish(exit_code=0 if run.row["status"] == "ok" else 1)
        mark.touch()

    def _history(self, run_id: str) -> Iterator[dict[str, Any]]:
        path = self._folder / "steps" / f"{run_id}.parquet"
        if path.exists():
            table = tables.read_table(path).drop_columns(["schema_version", "run_id"])
            stride = -(-table.num_rows // _MAX_ROWS) or 1
            yield from table.take(list(range(0, table.num_rows, stride))).to_pylist()

    def close(self) -> None:
        self._wandb.teardown()


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.datetime) else value
