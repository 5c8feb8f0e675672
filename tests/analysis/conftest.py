"""Synthetic result folders, written with pyarrow as the results contract says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
        points: config of each point, keys without `cfg.`; `tps` is its throughput in repeat 0, 10 more in each later,
            or a list of that of each repeat; `columns` are more of its runs' columns, and `quality` the rows of that
            table, and what they come to in `runs`, of repeat 0.
        repeats: of each point.
        num_requests: of each run, besides two of warm-up with absurd latencies.
        failed: (point, repeat) to the status of runs that did not finish.
        metrics: False leaves every metric null.
        details: False writes neither requests nor steps.
    """
    order = 0
    for repeat in range(repeats):
        for place, point in enumerate(points):
            config = {f"cfg.{key}": value for key, value in point.items() if key not in _NO_KNOBS}
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
            tps = point.get("tps", 100)
            scale = 100 / (tps if isinstance(tps, (int, float)) else tps[0])
            if run["status"] != "ok":
                run |= {
                    "error_type": "ValueError",
                    "error_message": "scheduler.alpha=-1: must be 0 or more\nmore lines",
                }
            elif metrics:
                run |= {
                    "output_throughput_tps": float(tps + 10 * repeat if isinstance(tps, (int, float)) else tps[repeat]),
                    "ttft_p50_s": 0.055 * scale,
                    "ttft_p99_s": 0.1 * scale,
                    "kv_blocks_total": 100,
                    "num_preemptions": repeat,
                    **point.get("columns", {}),
                }
                if repeat == 0 and point.get("quality"):
                    run |= told(point["quality"])
                    write_rows(folder, "quality", run_id, [{"run_id": run_id, **row} for row in point["quality"]])
            if run["status"] == "ok" and metrics and details:
                requests = [_request(run_id, i, scale=scale) for i in range(num_requests)]
                requests += [_request(run_id, 100 + i, scale=1e6, warmup=True) for i in range(2)]
                write_rows(folder, "requests", run_id, requests)
                write_rows(folder, "steps", run_id, [_step(run_id, i, scale=scale) for i in range(40)])
            write_rows(folder, "runs", run_id, [run])
            (folder / "configs").mkdir(exist_ok=True)
            (folder / "configs" / f"{run_id}.yaml").write_text("seed: 0\n")
    return folder


_NO_KNOBS = ("tps", "columns", "quality")


def told(items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a run says of its items in its row of `runs`."""

    def over(kind: str, column: str, of: str = "num_tokens") -> float:
        rows = [row for row in items if row["kind"] == kind]
        return sum(row[column] for row in rows) / sum(row[of] for row in rows)

    made: dict[str, float] = {}
    if any(row["kind"] == "text" for row in items):
        made |= {
            "perplexity": float(np.exp(over("text", "nll_sum_nats"))),
            "kl_mean_nats": over("text", "kl_sum_nats"),
            "top1_agreement_fraction": over("text", "top1_matches"),
            "top1_flip_fraction": over("text", "top1_flips"),
            "quality_num_tokens": sum(row["num_tokens"] for row in items if row["kind"] == "text"),
        }
    if any(row["kind"] == "generation" for row in items):
        same = [row for row in items if row["kind"] == "generation"]
        # A prompt that never diverges counts with all its tokens.
        first = [row["num_tokens"] if row["first_divergence"] is None else row["first_divergence"] for row in same]
        made["token_agreement_fraction"] = over("generation", "token_matches")
        made["first_divergence_mean_tokens"] = float(np.mean(first))
    tasks = [row["task_correct"] for row in items if row["kind"] == "task"]
    return made | ({"task_score_fraction": float(np.mean(tasks))} if tasks else {})


def quality_items(
    cost: float = 0.0,
    kl: float = 0.0,
    *,
    num_windows: int = 32,
    window_tokens: int = 255,
    num_prompts: int = 16,
    num_tasks: int = 128,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of `quality` of one precision.

    Args:
        cost: nats a token that it is worse than the unquantized one, whose perplexity is about 6.
        kl: nats a token from it, on average.
        seed: of what it does by chance; the text is the same for all.
    """
    text, own = np.random.default_rng(0), np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i in range(num_windows):
        hard = 1.8 * text.gamma(20, 1 / 20)
        # What a token loses varies by about the root of twice the divergence.
        worse = cost * own.gamma(4, 1 / 4) + own.normal(0, (2 * kl / window_tokens) ** 0.5)
        flips = int(own.binomial(window_tokens, min(0.5, kl**0.5 / 8)))
        rows.append(
            {
                "item_id": f"text-{i}",
                "kind": "text",
                "num_tokens": window_tokens,
                "nll_sum_nats": (hard + worse) * window_tokens,
                "kl_sum_nats": kl * own.gamma(6, 1 / 6) * window_tokens,
                "top1_matches": window_tokens - 2 * flips,
                "top1_flips": flips,
            }
        )
    for i in range(num_prompts):
        at = int(own.geometric(min(1.0, kl**0.5 / 8))) - 1 if kl else 64
        rows.append(
            {
                "item_id": f"generation-{i}",
                "kind": "generation",
                "num_tokens": 64,
                "token_matches": min(at, 64) + (64 - at) // 4 * (at < 64),
                "first_divergence": at if at < 64 else None,
            }
        )
    for i in range(num_tasks):
        right, lost = bool(text.random() < 0.4), bool(own.random() < 4 * cost)
        answered = {
            "task_correct": right and not lost,
            "task_expected": "name",
            "task_answer": "name" if right else "x",
        }
        rows.append({"item_id": f"task-{i}", "kind": "task", "task": "next_identifier", **answered})
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column) for column in columns} for row in rows]


# Name, bits a weight, MiB of weights, speed at batch sizes 1, 8 and 32, nats worse, KL.
PRECISIONS = (
    ("fp32", None, 22.0, (100, 500, 900), 0.0, 0.0),
    ("bf16", None, 11.0, (150, 560, 880), 0.00002, 2e-5),
    ("int8", 8.1, 6.2, (190, 700, 1000), 0.001, 8e-4),
    ("int8_dynamic", 8.1, 6.2, (185, 900, 1900), 0.004, 4e-3),
    ("fp8", 8.1, 6.2, (180, 650, 950), 0.003, 3e-3),
    ("int4", 4.25, 3.6, (280, 760, 800), 0.06, 0.05),
    ("int4_gptq", 4.25, 3.6, (290, 770, 810), 0.02, 0.02),
)


def _make_quality_sweep(
    folder: Path,
    *,
    precisions: Sequence[tuple[Any, ...]] = PRECISIONS,
    sizes: Sequence[int | None] = (1, 8, 32),
    axis: str = "workload.concurrency",
    knob: str = "variant",
    noise: float = 0.01,
    items: Mapping[str, Any] | None = None,
    lacking: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A sweep of precisions.

    Args:
        precisions: as `PRECISIONS`.
        sizes: batch sizes; None is none.
        axis: the knob that they are.
        knob: the one that the precisions' names are of.
        noise: standard deviation of log throughput; another seed for each.
        items: options of `quality_items`.
        lacking: names of precisions without quality.
        more: other knobs.
        options: of `make_sweep`; three repeats by default.
    """
    rng = np.random.default_rng(5)
    repeats = options.pop("repeats", 3)
    points = []
    for size_at, size in enumerate(sizes):
        for seed, (name, bits, mib, speeds, cost, kl) in enumerate(precisions):
            tps = speeds[size_at] * np.exp(rng.normal(0, noise, repeats))
            columns = {
                "weights_bytes": int(mib * 2**20),
                "bits_per_weight": bits,
                "quantization": "none" if bits is None else name,
                "tpot_p50_s": 0.8 * (size or 1) / float(tps[0]),
            }
            points.append(
                {
                    knob: name,
                    **({} if size is None else {axis: size}),
                    # A variant is a name for what it sets.
                    **({"quantization": name} if knob == "variant" else {}),
                    **(more or {}),
                    "tps": tps.tolist(),
                    "columns": columns,
                    "quality": [] if name in lacking else quality_items(cost, kl, seed=seed, **(items or {})),
                }
            )
    return _make_sweep(folder, points, repeats=repeats, **{"num_requests": 4, **options})


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
def make_quality_sweep() -> Callable[..., Path]:
    return _make_quality_sweep


@pytest.fixture(scope="session")
def precisions_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven precisions at three batch sizes, three repeats."""
    return _make_quality_sweep(tmp_path_factory.mktemp("sweeps") / "quantization")


@pytest.fixture(scope="session")
def precisions(precisions_folder: Path) -> analysis.Sweep:
    return analysis.load(precisions_folder)


@pytest.fixture(scope="session")
def ablation_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three variants, two repeats; the last variant's second repeat timed out."""
    return _make_sweep(tmp_path_factory.mktemp("sweeps") / "ablation", ABLATION, repeats=2, failed={(2, 1): "timeout"})


@pytest.fixture(scope="session")
def ablation(ablation_folder: Path) -> analysis.Sweep:
    return analysis.load(ablation_folder)
