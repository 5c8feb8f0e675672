"""Weights & Biases: one run a run of ours, and one for the sweep.

A run of ours is in the group of its sweep, its job type its variant or experiment, its config flattened, its history
from `steps` on the axis `steps/step`, its summary the row of `runs`, and its files an artifact: what the history thins
out lies there whole. The sweep's own run has what compares them: the tables, the plots and the report.

It lives in the driver, between the runs: its service takes seconds to start and a core while it works, which no
measurement should share. One service then serves the whole sweep. Tables are made once a sweep and not once a run, for
W&B looks at each cell by itself: a second for a thousand steps.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from experiments import tables
from experiments.tracking.base import Mirrored
from minivllm.config import require

MODES = ("offline", "online")
# Rows of history a run: enough for a curve.
_MAX_ROWS = 200
# Of a sweep's tables `requests` and `steps`, evenly over all runs.
_MAX_TABLE_ROWS = 500
_TABLE_COLUMNS = {
    "requests": "run_id request_id arrival_s ttft_s tpot_s e2e_s queue_s num_prompt_tokens num_output_tokens "
    "num_cached_tokens num_draft_tokens num_accepted_tokens finish_reason",
    "steps": "run_id step start_s duration_s run_s num_prefill_tokens num_decode_tokens num_running num_waiting "
    "kv_utilization_fraction",
}
# W&B takes no longer ones.
_MAX_NAME = 64


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
        # Where files of artifacts wait for a sync: beside the run that they belong to, and not in the user's home.
        self._data_folder = os.environ.get("WANDB_DATA_DIR")
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb" / "data")

    def record(self, run: Mirrored) -> None:
        row, run_id = run.row, run.run_id
        mark = f"{run_id}.{row['status']}"
        if (self._marks / mark).exists():
            return
        choices = run.config["choices"]
        tags = [row["status"], run.config["experiment"], run.config["variant"], run.config["label"]]
        tags += [f"{group}={choices[group]}" for group in ("model", "scheduler", "cache", "workload")]
        config = {key.removeprefix("cfg."): value for key, value in tables.flatten(run.config).items()}
        with self._run(
            mark,
            name=run_id,
            job_type=str(run.config["variant"] or run.config["experiment"] or "run"),
            tags=tags,
            config=config | {"point_id": row["point_id"]},
            ok=row["status"] == "ok",
        ) as shown:
            shown.define_metric("steps/step", summary="none", hidden=True)
            # Its summary is the run's row; the last step says nothing about it.
            shown.define_metric("steps/*", step_metric="steps/step", summary="none")
            for history in self._history(run_id):
                shown.log({f"steps/{key}": value for key, value in history.items() if value is not None})
            shown.summary.update({k: _plain(v) for k, v in _scalars(row).items() if v is not None and k != "run_id"})
            files = [self._folder / table / f"{run_id}.parquet" for table in tables.TABLES]
            self._attach(shown, run_id, "run", [*files, self._folder / "configs" / f"{run_id}.yaml"])

    def finish(self, runs: Sequence[Mirrored]) -> None:
        seen = sorted(f"{run.run_id} {run.row['status']} {run.row.get('started_at')}" for run in runs)
        mark = f"sweep-{hashlib.sha256(' '.join(seen).encode()).hexdigest()[:12]}"
        if not seen or (self._marks / mark).exists():
            return
        plots = sorted((self._folder / "plots").glob("*.png"))
        experiments = dict.fromkeys(str(run.config["experiment"]) for run in runs if run.config["experiment"])
        with self._run(mark, name=self._sweep, job_type="sweep", tags=list(experiments), config={}, ok=True) as shown:
            run_ids = [run.run_id for run in runs]
            logged: dict[str, Any] = {"runs": self._table(self._read("runs", run_ids))}
            for table, columns in _TABLE_COLUMNS.items():
                logged[table] = self._table(_sample(self._read(table, run_ids, columns.split())))
            logged |= {f"plots/{path.stem}": self._wandb.Image(str(path)) for path in plots}
            shown.log({key: value for key, value in logged.items() if value is not None})
            shown.summary.update({"num_runs": len(runs), "num_ok": sum(run.row["status"] == "ok" for run in runs)})
            reports = sorted(path for path in self._folder.glob("report.*") if path.is_file())
            self._attach(shown, f"{self._sweep}-report", "report", [*reports, *plots])

    @contextlib.contextmanager
    def _run(
        self, mark: str, *, name: str, job_type: str, tags: Sequence[str | None], config: Mapping[str, Any], ok: bool
    ) -> Iterator[Any]:
        """A run of W&B, finished whatever happens in it, and marked as made where nothing did."""
        self._marks.mkdir(parents=True, exist_ok=True)
        shown = self._wandb.init(
            project=self._project,
            group=self._sweep,
            name=name,
            job_type=job_type[:_MAX_NAME],
            tags=[tag[:_MAX_NAME] for tag in dict.fromkeys(tags) if tag],
            config=dict(config),
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
        is_whole = False
        try:
            yield shown
            is_whole = True
        finally:
            shown.finish(exit_code=0 if ok and is_whole else 1)
        (self._marks / mark).touch()

    def _history(self, run_id: str) -> Iterator[dict[str, Any]]:
        path = self._folder / "steps" / f"{run_id}.parquet"
        if path.exists():
            table = tables.read_table(path).drop_columns(["schema_version", "run_id"])
            stride = -(-table.num_rows // _MAX_ROWS) or 1
            yield from table.take(list(range(0, table.num_rows, stride))).to_pylist()

    def _read(self, name: str, run_ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table | None:
        """A table of all runs that have one."""
        paths = [self._folder / name / f"{run_id}.parquet" for run_id in run_ids]
        parts = [tables.read_table(path) for path in paths if path.exists()]
        if not parts:
            return None
        whole = pa.concat_tables(parts, promote_options="permissive")
        return whole if columns is None else whole.select(columns)

    def _table(self, table: pa.Table | None) -> Any:
        if table is None:
            return None
        data = [[_plain(value) for value in row.values()] for row in table.to_pylist()]
        return self._wandb.Table(columns=table.column_names, data=data)

    def _attach(self, shown: Any, name: str, kind: str, files: Sequence[Path]) -> None:
        """Files under their paths within the sweep's folder."""
        there = [path for path in files if path.exists()]
        if there:
            artifact = self._wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type=kind)
            for path in there:
                artifact.add_file(str(path), name=str(path.relative_to(self._folder)))
            shown.log_artifact(artifact)

    def close(self) -> None:
        self._wandb.teardown()
        if self._data_folder is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = self._data_folder


def _sample(table: pa.Table | None) -> pa.Table | None:
    if table is None or table.num_rows <= _MAX_TABLE_ROWS:
        return table
    return table.take([i * table.num_rows // _MAX_TABLE_ROWS for i in range(_MAX_TABLE_ROWS)])


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `runs` without its lists; what they say of acceptance, position by position, in their place."""
    made = {key: value for key, value in row.items() if key not in tables.BY_POSITION}
    evaluated, accepted = (row.get(f"{what}_by_position") or () for what in ("evaluated", "accepted"))
    for position, (num, kept) in enumerate(zip(evaluated, accepted, strict=True), start=1):
        made[f"acceptance/position_{position}"] = kept / num if num else None
    return made


def _plain(value: Any) -> Any:
    """As a cell that W&B takes."""
    if isinstance(value, list):
        return json.dumps(value)
    return value.isoformat() if isinstance(value, datetime.datetime) else value
