"""One run, in a process of its own: load, warm up, measure, write. A crash here costs one row.

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
from experiments.drive import Driven, drive
from experiments.errors import one_line
from experiments.points import RunSettings, freeze, located
from experiments.workloads.base import Streams, Workload, warmup_items, with_sampling_seeds, workload_sha256
from experiments.workloads.prompts import PromptSource, RandomTokens, TextPrompts, read_documents
from minivllm.llm import LLM
from minivllm.request import FinishReason

_REPORT_EVERY_S = 0.25
HELDOUT = "experiments/assets/heldout.jsonl"


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

    def end(self, name: str) -> None:
        now_s = time.perf_counter()
        self.row[name], self._last_s = now_s - self._last_s, now_s


def _run(order: Order, pipe: connection.Connection) -> dict[str, Any]:
    """Returns the row that was written.

    Raises:
        OSError: the results cannot be written.
    """
    stages = _Stages(order)
    row = stages.row
    rows: dict[str, list[dict[str, Any]]] = {}
    measuring = False
    try:
        settings = freeze(order.config)
        llm = LLM.from_config(settings.engine)
        stages.end("load_s")
        row["env.threads"] = _num_threads()
        work = _Work(settings, llm)
        warm = work.warm_up()
        stages.end("warmup_s")
        measuring = True
        driven = work.measure(_reporter(pipe, len(work.items)))
        row |= work.columns(driven)
        rows = work.rows(warm, driven)
        row |= _verdict(driven)
    # The border of a run: whatever a part raises becomes the row's error, and the traceback goes to the log.
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        # Before the measurement a ValueError says what the user got wrong; after it, that a part misbehaved.
        row["status"] = "invalid" if isinstance(error, ValueError) and not measuring else "error"
        row |= {"error_type": type(error).__name__, "error_message": one_line(error) or type(error).__name__}
    row["peak_process_bytes"] = metrics.peak_process_bytes()
    stages.end("measured_s")
    del row["measured_s"]
    folder, run_id = Path(order.folder), row["run_id"]
    for name, table_rows in rows.items():
        tables.write_table(folder / name / f"{run_id}.parquet", tables.rows_table(name, run_id, table_rows))
    stages.end("record_s")
    row["wall_s"] = time.time() - order.started_at_s
    row["started_at"] = datetime.fromtimestamp(order.started_at_s, tz=timezone.utc)
    # Last: this file says that the run is complete.
    tables.write_table(folder / "runs" / f"{run_id}.parquet", tables.runs_table(row, order.config, order.column_types))
    return row


class _Work:
    """A workload made for one engine."""

    def __init__(self, settings: RunSettings, llm: LLM) -> None:
        self._settings, self._engine = settings, llm.engine
        self._streams = Streams.make(seed=settings.seed, repeat=settings.repeat)
        workload: Workload = settings.workload.make("workload")
        self._concurrency = workload.concurrency
        self.items = with_sampling_seeds(workload.items(self._streams, _source(workload.prompts, llm)), self._streams)
        if not self.items:
            raise ValueError(f"workload._target_={settings.workload.target!r}: made no requests")

    def warm_up(self) -> Driven:
        """Run other prompts of the same shape, and forget what they left in the prefix cache."""
        engine = self._engine
        items = warmup_items(self.items, self._settings.num_warmup_requests, engine.runner.vocab_size, self._streams)
        driven = drive(engine, items, self._settings.sampling, concurrency=max(1, len(items)))
        engine.reset_prefix_cache()
        return driven

    def measure(self, watch: Any) -> Driven:
        return drive(self._engine, self.items, self._settings.sampling, concurrency=self._concurrency, watch=watch)

    def rows(self, warm: Driven, driven: Driven) -> dict[str, list[dict[str, Any]]]:
        slo, origin_s = self._settings.slo, driven.start_s
        requests = metrics.request_rows(warm, slo, origin_s=origin_s, warmup=True)
        requests += metrics.request_rows(driven, slo, origin_s=origin_s)
        return {"requests": requests, "steps": metrics.step_rows(driven.steps, origin_s=origin_s)}

    def columns(self, driven: Driven) -> dict[str, Any]:
        engine, slo = self._engine, self._settings.slo
        memory = engine.memory()
        return metrics.run_columns(
            driven,
            metrics.request_rows(driven, slo, origin_s=driven.start_s),
            slo,
            num_offered=len(self.items) * self._settings.sampling.n,
            num_blocks=engine.num_blocks,
            block_size=engine.block_size,
        ) | {
            "workload_sha256": workload_sha256(self.items),
            "weights_bytes": memory.weights_bytes,
            "kv_cache_bytes": memory.kv_cache_bytes,
            "peak_allocated_bytes": memory.peak_allocated_bytes,
            "peak_reserved_bytes": memory.peak_reserved_bytes,
        }


def _source(prompts: str, llm: LLM) -> PromptSource:
    if prompts == "random":
        return RandomTokens(llm.engine.runner.vocab_size)
    path = located(HELDOUT if prompts == "heldout" else prompts)
    assert path is not None
    documents, tokenizer = read_documents(path), llm.tokenizer

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return TextPrompts(documents, encode, tokenizer.bos_token_id)


def _reporter(pipe: connection.Connection, total: int) -> Any:
    """Tell the driver how far the run is, a few times a second."""
    last = [0.0, 0]

    def watch(done: int, num_tokens: int, elapsed_s: float) -> None:
        since_s = elapsed_s - last[0]
        if since_s >= _REPORT_EVERY_S:
            pipe.send(("progress", done, total, (num_tokens - last[1]) / since_s))
            last[:] = elapsed_s, num_tokens

    return watch


def _verdict(driven: Driven) -> Mapping[str, Any]:
    """A run in which a request failed is no measurement."""
    failed = [r for r in driven.requests if r.finish_reason is FinishReason.ERROR]
    if not failed:
        return {"status": "ok"}
    first = failed[0]
    message = f"{len(failed)} of {len(driven.requests)} requests failed; request {first.request_id}: {first.error}"
    return {"status": "error", "error_type": "RequestError", "error_message": message}


def _num_threads() -> int:
    import torch

    return torch.get_num_threads()
