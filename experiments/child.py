"""One run, in a process of its own: load, warm up, measure, ask for quality, write. A crash here costs one row.

Everything that a user's part prints goes to the run's log; the driver hears of the run through a pipe.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from experiments import environment, metrics, tables
from experiments.errors import one_line
from experiments.measurement import Measurement
from experiments.points import freeze
from experiments.quality.settings import wants_quality
from experiments.streams import WriteError
from minivllm.llm import LLM
from minivllm.runner.simulated import SimulatedRunner


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """All that a child needs to know."""

    config: dict[str, Any]
    # Identity and environment, already known to the driver.
    row: dict[str, Any]
    column_types: dict[str, str]
    folder: str
    log: str
    # Wall clock, seconds since the epoch.
    started_at_s: float
    # Of the machine, from `peaks.measure`; None where they were not measured.
    peaks: Mapping[str, Any] | None = None


def child_main(order: Order, pipe: connection.Connection) -> None:
    """Run an order. Messages: ("progress", done, total, tokens_per_s), then ("done", row) or ("unwritable", reason)."""
    # A group of its own: the driver can end it with all its children, and Ctrl-C is the driver's to answer.
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_the_driver()
    try:
        log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.enable()
        pipe.send(("done", _run(order, pipe)))
    except OSError as error:
        pipe.send(("unwritable", one_line(error)))
    sys.stdout.flush()
    sys.stderr.flush()


def _end_with_the_driver() -> None:
    """A run whose driver is gone has nobody to answer to, and would disturb the next one."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class _Stages:
    """Seconds of each stage, and the row that they go to."""

    def __init__(self, order: Order) -> None:
        self.row = dict(order.row) | environment.moment()
        self.row["startup_s"] = time.time() - order.started_at_s
        self._last_s = time.perf_counter()
        # The memory of a simulation says nothing about that of what it stands for.
        self._simulated = order.config["execution"]["device"] == "simulated"
        self._is_measured = False

    def end(self, name: str) -> None:
        now_s = time.perf_counter()
        self.row[name], self._last_s = now_s - self._last_s, now_s

    def measured(self) -> None:
        """The measurement is over, or what came of it: what follows is in neither its time nor its memory."""
        if not self._is_measured:
            self._is_measured = True
            if not self._simulated:
                self.row["peak_process_bytes"] = metrics.peak_process_bytes()
            self._last_s = time.perf_counter()


def _run(order: Order, pipe: connection.Connection) -> dict[str, Any]:
    """Returns the row that was written.

    Raises:
        OSError: the results cannot be written.
    """
    stages = _Stages(order)
    row = stages.row
    quality: list[dict[str, Any]] | None = None
    work: Measurement | None = None
    folder, run_id = Path(order.folder), row["run_id"]
    measuring = measured = False
    try:
        settings = freeze(order.config)
        if wants_quality(settings):
            # It imports torch, and the driver imports this module.
            from experiments.quality.measure import measure_quality, prepare_reference

            reference = prepare_reference(folder, settings)
            stages.end("reference_s")
        llm = LLM.from_config(settings.engine)
        stages.end("load_s")
        if settings.engine.simulation is None:
            row["env.threads"] = _num_threads()
        row["kernels"] = getattr(llm.engine.runner, "kernels", None)
        row |= _simulation_columns(llm)
        work = Measurement(settings, llm, folder, run_id)
        work.warm_up()
        stages.end("warmup_s")
        measuring = True
        driven = work.measure(lambda *progress: pipe.send(("progress", *progress)))
        row["env.load_average_end"] = environment.load_average()
        row |= work.columns(driven, order.peaks)
        row |= work.verdict()
        measured = True
        stages.measured()
        if wants_quality(settings) and row["status"] == "ok":
            quality, columns = measure_quality(llm, settings, reference)
            row |= columns
            stages.end("quality_s")
    except WriteError:
        raise
    # The border of a run: whatever a part raises becomes the row's error, and the traceback goes to the log.
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        # Before the measurement a ValueError says what the user got wrong; after it, that a part misbehaved.
        row["status"] = "invalid" if isinstance(error, ValueError) and not measuring else "error"
        row |= {"error_type": type(error).__name__, "error_message": one_line(error) or type(error).__name__}
    stages.measured()
    if work is not None and measured:
        work.close()
    elif work is not None:
        work.discard()
    if quality is not None:
        path = folder / "quality" / f"{run_id}.parquet"
        tables.write_table(path, tables.rows_table("quality", run_id, quality))
    stages.end("record_s")
    row["wall_s"] = time.time() - order.started_at_s
    row["started_at"] = datetime.fromtimestamp(order.started_at_s, tz=timezone.utc)
    # Last: this file says that the run is complete.
    tables.write_table(folder / "runs" / f"{run_id}.parquet", tables.runs_table(row, order.config, order.column_types))
    return row


def _simulation_columns(llm: LLM) -> Mapping[str, Any]:
    """Whose time it is: the machine's own, or that of a model of step times."""
    simulation, runner = llm.config.simulation, llm.engine.runner
    if simulation is None:
        return {"simulated": False}
    assert isinstance(runner, SimulatedRunner)
    return {
        "simulated": True,
        "step_time_model": type(runner.step_time).__name__,
        "hardware": simulation.hardware.name,
        "step_time_error_fraction": getattr(runner.step_time, "error_fraction", None),
    }


def _num_threads() -> int:
    import torch

    return torch.get_num_threads()
