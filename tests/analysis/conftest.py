"""Synthetic result folders, written with pyarrow as the results contract says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis


def write_rows(folder: Path, table: str, run_id: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    (folder / table).mkdir(parents=True, exist_ok=True)
    path = folder / table / f"{run_id}.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def _request(run_id: str, index: int, *, scale: float, warmup: bool = False) -> dict[str, Any]:
    ttft_s, tpot_s, tokens = 0.01 * (index + 1) * scale, 0.002 * (1 + index % 3) * scale, 9
    return {
        "run_id": run_id,
        "request_id": index,
        "warmup": warmup,
        "arrival_s": 0.1 * index,
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "e2e_s": ttft_s + tpot_s * (tokens - 1),
        "num_output_tokens": tokens,
        "finish_reason": "length",
    }


def _step(run_id: str, step: int, *, scale: float) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "step": step,
        "start_s": 50 + 0.02 * scale * step,
        "duration_s": 0.02,
        "kv_blocks_used": min(100, 3 * step),
        "kv_blocks_cached": min(100, step),
    }


def _make_sweep(
    folder: Path,
    points: Sequence[Mapping[str, Any]],
    *,
    repeats: int = 1,
    num_requests: int = 10,
    failed: Mapping[tuple[int, int], str] | None = None,
    metrics: bool = True,
    details: bool = True,
) -> Path:
    """Write a sweep, repeat by repeat.

    Args:
        folder: of the sweep.
        points: config of each point, keys without `cfg.`; `tps` is its throughput in repeat 0, 10 more in each later.
        repeats: of each point.
        num_requests: of each run, besides two of warm-up with absurd latencies.
        failed: (point, repeat) to the status of runs that did not finish.
        metrics: False leaves every metric null.
        details: False writes neither requests nor steps.
    """
    order = 0
    for repeat in range(repeats):
        for place, point in enumerate(points):
            config = {f"cfg.{key}": value for key, value in point.items() if key != "tps"}
            run_id = f"{place:012x}-r{repeat}"
            run: dict[str, Any] = {
                "schema_version": 1,
                "sweep": folder.name,
                "run_id": run_id,
                "point_id": f"{place:012x}",
                "repeat": repeat,
                "order_index": order,
                "status": (failed or {}).get((place, repeat), "ok"),
                **config,
                "cfg.repeat": repeat,
                "env.python": "3.11.7",
                "env.load_average_1m": 0.5,
                "env.cpu_count": 2,
                "workload_sha256": f"{repeat}",
            }
            order += 1
            scale = 100 / point.get("tps", 100)
            if run["status"] != "ok":
                run |= {
                    "error_type": "ValueError",
                    "error_message": "scheduler.alpha=-1: must be 0 or more\nmore lines",
                }
            elif metrics:
                run |= {
                    "output_throughput_tps": float(point.get("tps", 100) + 10 * repeat),
                    "ttft_p50_s": 0.055 * scale,
                    "ttft_p99_s": 0.1 * scale,
                    "kv_blocks_total": 100,
                    "num_preemptions": repeat,
                }
            if run["status"] == "ok" and metrics and details:
                requests = [_request(run_id, i, scale=scale) for i in range(num_requests)]
                requests += [_request(run_id, 100 + i, scale=1e6, warmup=True) for i in range(2)]
                write_rows(folder, "requests", run_id, requests)
                write_rows(folder, "steps", run_id, [_step(run_id, i, scale=scale) for i in range(40)])
            write_rows(folder, "runs", run_id, [run])
            (folder / "configs").mkdir(exist_ok=True)
            (folder / "configs" / f"{run_id}.yaml").write_text("seed: 0\n")
    return folder


ABLATION = [
    {
        "variant": "baseline",
        "scheduler._target_": "minivllm.scheduler.fcfs.FCFS",
        "cache.prefix_caching": True,
        "tps": 100,
    },
    {
        "variant": "no_prefix_cache",
        "scheduler._target_": "minivllm.scheduler.fcfs.FCFS",
        "cache.prefix_caching": False,
        "tps": 80,
    },
    {
        "variant": "static_batching",
        "scheduler._target_": "minivllm.scheduler.static.StaticBatching",
        "cache.prefix_caching": True,
        "tps": 50,
    },
]


@pytest.fixture(scope="session")
def make_sweep() -> Callable[..., Path]:
    return _make_sweep


@pytest.fixture(scope="session")
def ablation_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three variants, two repeats; the last variant's second repeat timed out."""
    return _make_sweep(tmp_path_factory.mktemp("sweeps") / "ablation", ABLATION, repeats=2, failed={(2, 1): "timeout"})


@pytest.fixture(scope="session")
def ablation(ablation_folder: Path) -> analysis.Sweep:
    return analysis.load(ablation_folder)
