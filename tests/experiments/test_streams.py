"""A file of a table that is written while it is made: all of it or nothing, and little of it in memory."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from virtual_engine import make_engine

from experiments import request_stream, step_stream, streams, tables
from experiments.drive import drive
from experiments.points import Slo
from experiments.request_stream import RequestStream
from experiments.sketch import Sketch
from experiments.step_stream import StepStream
from experiments.streams import TableStream, WriteError
from experiments.workloads.base import WorkloadItem
from minivllm.plan import StepReport
from minivllm.request import Request
from minivllm.sampling_params import SamplingParams
from minivllm.simulation.base import StepWork


def _make_stream(folder: Path) -> TableStream:
    return TableStream(folder / "steps" / "a-r0.parquet", "steps", "a-r0")


@pytest.mark.parametrize("rows_at_once", [1, 5, 100])
def test_rows_come_back_in_order_whatever_the_batches(
    rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ROWS_AT_ONCE", rows_at_once)
    stream = _make_stream(tmp_path)
    for first, num_rows in ((0, 3), (3, 0), (3, 8), (11, 1)):
        steps = np.arange(first, first + num_rows)
        device_s = np.where(steps % 2, np.nan, steps * 1.5)
        stream.write({"step": steps, "device_s": device_s, "draft_s": [None] * num_rows}, num_rows)
    assert not (tmp_path / "steps" / "a-r0.parquet").exists()
    stream.close()
    table = tables.read_table(tmp_path / "steps" / "a-r0.parquet")
    assert table.schema == tables.STEPS
    assert table["step"].to_pylist() == list(range(12))
    assert table["device_s"].to_pylist() == [None if i % 2 else i * 1.5 for i in range(12)]
    assert set(table["draft_s"].to_pylist() + table["verify_s"].to_pylist()) == {None}
    assert set(table["run_id"].to_pylist()) == {"a-r0"}
    assert set(table["schema_version"].to_pylist()) == {tables.SCHEMA_VERSION}
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["a-r0.parquet"]


def test_a_table_without_rows_is_a_table(tmp_path: Path) -> None:
    stream = _make_stream(tmp_path)
    stream.close()
    assert tables.read_table(tmp_path / "steps" / "a-r0.parquet").schema == tables.STEPS


@pytest.mark.parametrize("num_rows", [0, 3])
def test_what_is_discarded_leaves_nothing(num_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ROWS_AT_ONCE", 1)
    stream = _make_stream(tmp_path)
    stream.write({"step": list(range(num_rows))}, num_rows)
    stream.discard()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _make_stream(tmp_path)
    before.write({"step": [7]}, 1)
    before.close()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    stream = _make_stream(tmp_path)
    stream.write({"step": [8]}, 1)
    monkeypatch.setattr(streams.os, "fsync", full)
    with pytest.raises(WriteError, match="No space"):
        stream.close()
    path = tmp_path / "steps" / "a-r0.parquet"
    assert tables.read_table(path)["step"].to_pylist() == [7]
    assert list(path.parent.iterdir()) == [path]


def test_a_column_that_the_table_does_not_have_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="speed"):
        _make_stream(tmp_path).write({"speed": [1.0]}, 1)


def test_memory_does_not_grow_with_the_requests_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks as small as the run, so that many of them are written.
    monkeypatch.setattr(streams, "ROWS_AT_ONCE", 200)
    monkeypatch.setattr(step_stream, "STEPS_AT_ONCE", 100)
    monkeypatch.setattr(request_stream, "REQUESTS_AT_ONCE", 100)
    monkeypatch.setattr(request_stream, "Sketch", lambda: Sketch(0))
    num_requests, engine = 3000, make_engine(max_num_seqs=8)
    requests = RequestStream(
        TableStream(tmp_path / "r.parquet", "requests", "a"), Slo(ttft_s=1, tpot_s=1), origin_s=100.0
    )
    steps = StepStream(TableStream(tmp_path / "s.parquet", "steps", "a"), origin_s=100.0, num_blocks=64, block_size=4)
    held: list[int] = []

    class Listens:
        def on_sent(self, request_ids: tuple[int, ...], client_id: int) -> None:
            pass

        def on_step(self, report: StepReport) -> None:
            steps.add(report, StepWork())

        def on_request(self, request: Request, lateness_s: float | None) -> None:
            requests.add(request, lateness_s)
            if request.request_id in (1499, 2999):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])

    items = (WorkloadItem(prompt_token_ids=(i % 10, 1), max_tokens=3) for i in range(num_requests))
    # Leave alone what other tests left behind: looking through it takes seconds.
    gc.collect()
    gc.freeze()
    tracemalloc.start()
    drive(engine, items, SamplingParams(temperature=0), concurrency=8, listener=Listens())
    tracemalloc.stop()
    gc.unfreeze()
    # Two thousand requests on: some bytes of each would be seen.
    assert held[1] - held[0] < 60_000, held
    assert requests.run_columns(num_offered=num_requests, last_due_s=None)["num_requests"] == num_requests


def test_the_schemas_have_types_that_parquet_keeps() -> None:
    assert tables.REQUESTS.field("preempted_from_s").type == pa.list_(pa.float64())
