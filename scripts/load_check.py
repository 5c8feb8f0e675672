#!/usr/bin/env python
"""How long `analysis.load` and a report take on a large folder.

By default it has 1,000 runs, a million requests and half a million steps.

    .venv/bin/python scripts/load_check.py
    .venv/bin/python scripts/load_check.py --folder runs/large --keep     # leave the folder for other trials

The folder is written as a sweep writes it: one file a run a table, by the harness's own schemas. Two kinds of load are
timed by turns: one that reads every file, and one that finds the rows of runs remembered (`analysis/remembered.py`).
Each is printed, since the first one waits for the disk, and then the medians.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console

import analysis
from analysis.report import write_report
from experiments import tables

SCHEDULERS = ("fcfs", "static", "priority", "sjf", "srpt")


def write_sweep(folder: Path, *, num_runs: int, num_requests: int, num_steps: int, repeats: int = 5) -> None:
    """Synthetic runs: five schedulers by block sizes, in the order in which a sweep runs them."""
    rng = np.random.default_rng(0)
    num_points = max(1, num_runs // repeats)
    for table in ("runs", "requests", "steps"):
        (folder / table).mkdir(parents=True, exist_ok=True)
    for order in range(num_runs):
        repeat, place = divmod(order, num_points)
        run_id = f"{place:012x}-r{repeat}"
        ttft_s, tpot_s = rng.gamma(2, 0.05, num_requests), rng.gamma(9, 0.002, num_requests)
        row = {
            "sweep": folder.name,
            "run_id": run_id,
            "point_id": run_id[:12],
            "repeat": repeat,
            "order_index": order,
            "status": "ok",
            "workload_sha256": str(repeat),
            "output_throughput_tps": 400 * float(rng.lognormal(0, 0.02)),
            "ttft_p99_s": float(np.quantile(ttft_s, 0.99)),
            "env.cpu_count": 2,
            "env.python": "3.11.7",
        }
        config = {
            "scheduler": {"max_num_seqs": 8, "kind": SCHEDULERS[place % 5]},
            "cache": {"block_size": 8 + place // 5},
            "variant": None,
            "repeat": repeat,
            "choices": {"scheduler": SCHEDULERS[place % 5]},
            **{f"option_{i}": i for i in range(40)},
        }
        requests = {
            "run_id": [run_id] * num_requests,
            "request_id": np.arange(num_requests),
            "warmup": np.zeros(num_requests, bool),
            "arrival_s": np.arange(num_requests) * 0.01,
            "ttft_s": ttft_s,
            "tpot_s": tpot_s,
            "e2e_s": ttft_s + 63 * tpot_s,
            "num_output_tokens": np.full(num_requests, 64),
            "finish_reason": ["length"] * num_requests,
            "output_sha256": [f"{i:064x}" for i in range(num_requests)],
        }
        steps = {
            "run_id": [run_id] * num_steps,
            "step": np.arange(num_steps),
            "start_s": np.arange(num_steps) * 0.01,
            "duration_s": rng.gamma(9, 0.001, num_steps),
            "kv_blocks_used": rng.integers(0, 500, num_steps),
        }
        pq.write_table(_table(requests, tables.REQUESTS), folder / "requests" / f"{run_id}.parquet")
        pq.write_table(_table(steps, tables.STEPS), folder / "steps" / f"{run_id}.parquet")
        types = tables.column_types([config])
        tables.write_table(folder / "runs" / f"{run_id}.parquet", tables.runs_table(row, config, types))


def _table(columns: dict[str, object], schema: pa.Schema) -> pa.Table:
    num_rows = len(columns["run_id"])  # type: ignore[arg-type]
    made = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(num_rows, f.type) for f in schema]
    return pa.Table.from_arrays(made, schema=schema)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1000, help="of each run")
    parser.add_argument("--steps", type=int, default=500, help="of each run")
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a temporary one where none is named")
    parser.add_argument("--keep", action="store_true", help="leave the folder, and use it again if it is there")
    chosen = parser.parse_args()
    folder = chosen.folder or Path(tempfile.mkdtemp()) / "large"
    if not folder.exists():
        write_sweep(folder, num_runs=chosen.runs, num_requests=chosen.requests, num_steps=chosen.steps)
    times_s: dict[str, list[float]] = {"files": [], "again": []}
    for _ in range(chosen.loads):
        for kind, times in times_s.items():
            if kind == "files":
                shutil.rmtree(folder / ".cache", ignore_errors=True)
            start = time.perf_counter()
            sweep = analysis.load(folder)
            times.append(time.perf_counter() - start)
            sizes = f"{len(sweep.runs):,} runs, {len(sweep.requests):,} requests, {len(sweep.steps):,} steps"
            print(f"load {kind} {times[-1]:6.2f} s  {sizes}", flush=True)
    files_s, again_s = (statistics.median(times) for times in times_s.values())
    print(f"medians: files {files_s:.2f} s, again {again_s:.2f} s, ratio {files_s / again_s:.2f}", flush=True)

    def report() -> pd.DataFrame:
        # Its files are no part of the check, its time is.
        write_report(folder, Console(file=io.StringIO()))
        return sweep.runs

    for name, make in (
        ("report", report),
        ("points", lambda: sweep.points()),
        ("compare", lambda: analysis.compare(sweep)),
        ("effects", lambda: analysis.effects(sweep)),
    ):
        start = time.perf_counter()
        made = make()
        print(f"{name:8} {time.perf_counter() - start:6.2f} s  {len(made):,} rows", flush=True)
    if not chosen.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
