"""Simulated runs: the tables of a real one, to the byte the same each time, with no device and no torch."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conservation import littles_law_error, unaccounted_tokens

from experiments import tables
from experiments.child import Order, _run
from experiments.plan import plan_sweep

ROOT = Path(__file__).resolve().parents[2]
_SIMULATED = ("execution=simulated", "model.shape.max_position_embeddings=4096", "cache.num_blocks=2000")
_LOADED = (
    *("workload.concurrency=null", "+workload.request_rate_rps=200"),
    *("workload.num_requests=60", "workload.max_prompt_tokens=90", "workload.max_output_tokens=70"),
)


def execute(overrides: list[str], folder: Path) -> dict[str, Any]:
    """What a child does with each point; the row of the last."""
    row: dict[str, Any] = {}
    for job in plan_sweep(overrides).jobs:
        order = Order(
            config=job.config,
            row={"run_id": job.run_id, "point_id": job.point_id, "repeat": job.repeat, "sweep": "x"},
            column_types=tables.column_types([job.config]),
            folder=str(folder),
            log="",
            started_at_s=time.time(),
        )
        _, sender = multiprocessing.Pipe(duplex=False)
        row = _run(order, sender)
        sender.close()
    return row


def _rows(folder: Path, table: str) -> list[dict[str, Any]]:
    (file,) = (folder / table).glob("*.parquet")
    rows: list[dict[str, Any]] = pd.read_parquet(file).to_dict("records")
    return rows


def test_another_process_writes_the_same_bytes_and_needs_no_torch(tiny: tuple[str, ...], tmp_path: Path) -> None:
    overrides = [*tiny, *_SIMULATED, *_LOADED, "step_time=constant", "step_time.token_s=0.0001", "cache.num_blocks=64"]
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom test_simulated_runs import execute\n"
        "row = execute(json.loads(sys.argv[1]), Path(sys.argv[2]))\nassert row['status'] == 'ok', row\n"
        "print(*sorted({'torch', 'transformers', 'numba', 'triton'} & sys.modules.keys()))"
    )
    paths = ":".join(str(ROOT / one) for one in (".", "kernels", "tests/experiments", "tests/support"))
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(overrides), str(tmp_path / "there")],
        cwd=ROOT,
        env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert execute(overrides, tmp_path / "here")["status"] == "ok"
    for table in ("requests", "steps"):
        (file,) = (tmp_path / "here" / table).glob("*.parquet")
        assert file.read_bytes() == (tmp_path / "there" / table / file.name).read_bytes()


def test_a_row_says_that_it_is_simulated_and_has_no_figure_of_the_machine(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    row = execute([*tiny, *_SIMULATED, *_LOADED], tmp_path)
    assert (row["status"], row["simulated"], row["step_time_model"]) == ("ok", True, "Roofline")
    assert row["hardware"] == "H200 SXM"
    assert row["energy_source"] == row["env.gpu_sensors"] == "none: the run is simulated"
    for column in ("energy_j", "peak_process_bytes", "env.threads", "mbu_fraction", "step_time_error_fraction"):
        assert row.get(column) is None, column
    assert all(pd.isna(step["process_bytes"]) and pd.isna(step["device_s"]) for step in _rows(tmp_path, "steps"))
    # Warm-up takes no time, so that the clock starts where the workload does.
    warm = [r for r in _rows(tmp_path, "requests") if r["warmup"]]
    assert [r["finish_s"] for r in warm] == [0.0, 0.0]


@pytest.mark.parametrize("blocks", [2000, 64], ids=["room", "preemptions"])
@pytest.mark.parametrize("policy", ["fcfs", "prefill_first", "static"])
def test_tokens_are_conserved_and_littles_law_holds(
    tiny: tuple[str, ...], tmp_path: Path, policy: str, blocks: int
) -> None:
    few = ("scheduler.max_num_batched_tokens=16", "execution.overlap=false", "cache.prefix_caching=false")
    overrides = [
        *tiny,
        *_SIMULATED,
        *_LOADED,
        *few,
        f"scheduler={policy}",
        f"cache.num_blocks={blocks}",
        "hardware=cpu",
    ]
    run = execute(overrides, tmp_path)
    assert run["status"] == "ok", run
    requests, steps = _rows(tmp_path, "requests"), _rows(tmp_path, "steps")
    assert (run["num_preemptions"] > 0) == (blocks == 64)
    assert unaccounted_tokens(requests, steps, run["num_recomputed_tokens"]) == 0
    assert abs(littles_law_error(requests, steps)) < 1e-9
    # Both notice what is lost.
    without = [row for row in requests if row["request_id"] != 20]
    assert unaccounted_tokens(without, steps, run["num_recomputed_tokens"]) > 0
    assert abs(littles_law_error(without, steps)) > 1e-4


def test_a_lossy_part_has_no_quality_in_a_simulation(tmp_path: Path) -> None:
    lossy = ("model=reference", "quantization=int8_weight_only", "execution=simulated", "workload.num_requests=3")
    row = execute([*lossy, "tracking=none"], tmp_path)
    assert (row["status"], row["quantization"]) == ("ok", "int8_weight_only")
    assert row.get("perplexity") is None and row.get("quality_s") is None
    assert not (tmp_path / "quality").exists()


def test_quality_that_is_asked_for_is_refused_in_one_line(tiny: tuple[str, ...], tmp_path: Path) -> None:
    (job,) = plan_sweep([*tiny, *_SIMULATED, "quality.enabled=true"]).jobs
    assert job.invalid is not None and job.invalid.startswith("quality.enabled=True: a simulation says nothing")


def test_a_simulated_run_replays_a_recorded_one(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A simulation stands for the recording, marked as a real one."""
    chunked = ("scheduler.max_num_batched_tokens=32", "workload.num_requests=90")
    overrides = [*tiny, *_SIMULATED, *_LOADED, "execution.overlap=false", *chunked]
    recorded = execute([*overrides, "step_time=constant", "step_time.token_s=0.0007", "hardware=cpu"], tmp_path / "a")
    path = tmp_path / "a" / "runs" / f"{recorded['run_id']}.parquet"
    row = tables.read_table(path).to_pylist()[0]
    as_real = row | {"simulated": False, "cfg.execution.device": "cpu"}
    tables.write_table(path, tables.pa.Table.from_pylist([as_real]))
    replay = (f"step_time.folder={tmp_path / 'a'}", "hardware=cpu")
    again = execute([*overrides, "step_time=replay", *replay], tmp_path / "b")
    assert again["status"] == "ok", again
    fitted = execute([*overrides, "step_time=fitted", *replay], tmp_path / "c")
    assert fitted["status"] == "ok", fitted
    assert fitted["step_time_error_fraction"] < 1e-3
    for column in ("duration_s", "ttft_mean_s", "tpot_mean_s", "e2e_p99_s"):
        assert again[column] == pytest.approx(recorded[column], rel=1e-9)
        assert fitted[column] == pytest.approx(recorded[column], rel=1e-2)
    other = execute([*overrides, "step_time=replay", *replay, "scheduler=prefill_first"], tmp_path / "d")
    assert other["status"] == "error"
    assert "this run goes another way" in other["error_message"]
