"""The steps of recorded runs: what each computed, and how long it took.

A step's time is the whole from its start to the start of the next one: what is inside of the engine and what the client
does between. Where the engine was idle in between, the usual time between two steps stands for that. Where steps
overlap, a row waits for the step that was launched in the row before, so times move up by one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from experiments import tables
from minivllm.component import require
from minivllm.simulation.base import StepTimeTarget, StepWork

# Columns of `steps` that say what a step computed; all of them are fields of `StepWork`, or made of them.
WORK = (
    "num_prefill_tokens",
    "num_decode_tokens",
    "num_prefill_requests",
    "num_prefill_context_tokens",
    "num_decode_context_tokens",
    "num_prefill_pairs",
    "num_swapped_blocks",
)
# What decides how long a step takes, beside its work: runs that differ in it are runs of different machines.
_MACHINE = ("cfg.model.", "cfg.execution.", "cfg.quantization", "cfg.attention", "cfg.cache.block_size", "env.machine")
# Real weights differ from counted ones by the padding of a layout.
_WEIGHTS_TOLERANCE = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRun:
    """The busy steps of one run, in their order.

    Args:
        run_id: of it.
        work: [num_steps, len(WORK)] float64.
        step_s: [num_steps] float64.
    """

    run_id: str
    work: np.ndarray
    step_s: np.ndarray


def work_row(work: StepWork) -> tuple[int, ...]:
    """A step's values of `WORK`."""
    return tuple(getattr(work, name) for name in WORK)


def read_runs(
    folder: str, run_ids: Sequence[str] | str | None, target: StepTimeTarget, *, key: str = "step_time"
) -> list[RecordedRun]:
    """Runs of a sweep's folder.

    Args:
        folder: `runs/<sweep>`.
        run_ids: which of them, one or several; all real ones that ended well where None.
        target: what is simulated, which must be what was measured.
        key: of the config group, for messages.

    Raises:
        ValueError: no such folder or run, or one that is of no use here.
    """
    valid = isinstance(folder, str) and bool(folder) and (Path(folder) / "runs").is_dir()
    require(valid, f"{key}.folder", folder, "the folder of a sweep, with runs/ and steps/ in it")
    wanted = [run_ids] if isinstance(run_ids, str) else None if run_ids is None else list(run_ids)
    rows = {row["run_id"]: row for row in map(_row, sorted((Path(folder) / "runs").glob("*.parquet")))}
    usable = {i: row for i, row in rows.items() if row["status"] == "ok" and not row.get("simulated")}
    chosen = list(usable) if wanted is None else wanted
    for run_id in chosen:
        require(run_id in usable, f"{key}.run_ids", run_id, f"of real runs that ended well: {', '.join(usable)}")
    require(bool(chosen), f"{key}.folder", folder, "one with a real run that ended well")
    _check_machine([usable[i] for i in chosen], folder, target, key)
    return [_read_steps(Path(folder), usable[run_id], key) for run_id in chosen]


def _row(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = tables.read_table(path).to_pylist()[0]
    return found


def _check_machine(rows: Sequence[Mapping[str, Any]], folder: str, target: StepTimeTarget, key: str) -> None:
    first = rows[0]
    for column in sorted({name for row in rows for name in row if name.startswith(_MACHINE)}):
        values = {str(row.get(column)) for row in rows}
        require(
            len(values) == 1,
            f"{key}.folder",
            folder,
            f"of one kind: its runs differ in {column} ({', '.join(sorted(values))}); name some in {key}.run_ids",
        )
    device, simulated = first.get("cfg.execution.device"), target.hardware.device
    require(
        device == simulated,
        "hardware.device",
        simulated,
        f"{device}, on which {folder} was measured: choose another member of hardware",
    )
    measured, counted = first.get("weights_bytes"), target.sizes.weights_bytes
    require(
        measured is None or abs(measured / counted - 1) < _WEIGHTS_TOLERANCE,
        f"{key}.folder",
        folder,
        f"of the model that is simulated: its weights take {measured} bytes, and here {counted}",
    )


def _read_steps(folder: Path, run: Mapping[str, Any], key: str) -> RecordedRun:
    run_id = run["run_id"]
    path = folder / "steps" / f"{run_id}.parquet"
    try:
        table = tables.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{key}.folder={str(folder)!r}: the steps of {run_id} cannot be read: {error}") from error
    column = {name: table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in _needed(table, path, key)}
    if "num_draft_tokens" in table.column_names and table["num_draft_tokens"].null_count < table.num_rows:
        raise ValueError(f"{key}.folder={str(folder)!r}: {run_id} speculates: choose a run with speculation=off")
    column["num_decode_context_tokens"] = column["num_context_tokens"] - column["num_prefill_context_tokens"]
    column["num_prefill_pairs"] = column["num_query_key_pairs"] - column["num_decode_context_tokens"]
    work = np.stack([np.nan_to_num(column[name]) for name in WORK], axis=1)
    # From the end of a step to the start of the next.
    after_s = np.append(column["client_s"][1:], np.nan)
    idle = column["num_running"] + column["num_waiting"] == 0
    usual_s = np.nanmedian(after_s[~idle]) if np.isfinite(after_s[~idle]).any() else 0.0
    whole_s = column["duration_s"] + np.where(idle | np.isnan(after_s), usual_s, after_s)
    if _overlaps(run):
        work, whole_s = work[:-1], whole_s[1:]
    busy = work[:, :2].sum(axis=1) > 0
    return RecordedRun(run_id=run_id, work=work[busy], step_s=whole_s[busy])


def _needed(table: pa.Table, path: Path, key: str) -> list[str]:
    """Columns to read; those of an older version are missed by name."""
    names = ["duration_s", "client_s", "num_running", "num_waiting", "num_prefill_tokens", "num_decode_tokens"]
    names += ["num_context_tokens", "num_query_key_pairs", "num_prefill_requests", "num_prefill_context_tokens"]
    names += ["num_swapped_blocks"]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ValueError(f"{key}.folder: {path} is of an older version and lacks {', '.join(missing)}: run it again")
    return names


def _overlaps(run: Mapping[str, Any]) -> bool:
    overlap = run.get("cfg.execution.overlap")
    return run.get("cfg.execution.device") == "cuda" if overlap is None else bool(overlap)
