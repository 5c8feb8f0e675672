"""Synthetic sweeps of policies: a small queue under known rules, written as a results folder.

One server of a few seats. A step prefills whoever gets a seat and gives every seated request one token; the policy says
who gets a free seat, and a preemptive one may take a seat away. Nothing of the engine is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEATS = 6


@dataclass
class _Queued:
    place: int
    arrival_s: float
    prompt: int
    output: int
    client: int
    done: int = 0
    first_scheduled_s: float | None = None
    tokens_s: list[float] = field(default_factory=list)
    preempted_from_s: list[float] = field(default_factory=list)
    preempted_until_s: list[float] = field(default_factory=list)


# Smallest first. A bool says whether a waiting request may take a seat.
Policy = tuple[Callable[[_Queued, float], float], bool]
POLICIES: dict[str, Policy] = {
    "fcfs": (lambda r, now: r.arrival_s, False),
    "sjf": (lambda r, now: r.prompt + r.output, False),
    "srpt": (lambda r, now: r.output - r.done, True),
    "reverse": (lambda r, now: -r.arrival_s, False),
    "random": (lambda r, now: (r.place * 7919) % 101, False),
    "aging": (lambda r, now: r.output - 8 * (now - r.arrival_s), False),
    "mlfq": (lambda r, now: r.done // 8, True),
    "fair": (lambda r, now: (r.client, r.arrival_s)[0], False),
    "edf": (lambda r, now: r.arrival_s + 0.05 * r.output, False),
    "prefix_match": (lambda r, now: -r.prompt, False),
    "past_future": (lambda r, now: r.arrival_s + 0.01 * r.output, False),
    "prefill_first": (lambda r, now: r.arrival_s - 0.001 * r.prompt, False),
    "static": (lambda r, now: r.arrival_s + 0.5 * (r.place % 4), False),
}


def simulate(
    policy: str, rate_rps: float, rng: np.random.Generator, num_requests: int, slow: float = 1.0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `requests` and of `steps`.

    Args:
        slow: factor on the time of each step.
    """
    key, preemptive = POLICIES[policy]
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, num_requests))
    outputs = np.clip(rng.lognormal(3, 0.8, num_requests), 2, 200).astype(int)
    prompts = rng.integers(16, 400, num_requests)
    due = [
        _Queued(i, float(t), int(p), int(o), int(i % 3 == 0) + int(i % 7 == 0))
        for i, (t, p, o) in enumerate(zip(arrivals, prompts, outputs, strict=True))
    ]
    waiting: list[_Queued] = []
    running: list[_Queued] = []
    ended: list[_Queued] = []
    steps: list[dict[str, Any]] = []
    now_s = 0.0
    while due or waiting or running:
        while due and due[0].arrival_s <= now_s:
            waiting.append(due.pop(0))
        if not waiting and not running:
            now_s = due[0].arrival_s
            continue
        ranked = (
            sorted([*running, *waiting], key=lambda r: key(r, now_s))
            if preemptive
            else [
                *running,
                *sorted(waiting, key=lambda r: key(r, now_s)),
            ]
        )
        seated, left = ranked[:SEATS], ranked[SEATS:]
        num_preempted = 0
        for request in left:
            if request in running:
                request.preempted_from_s.append(now_s)
                num_preempted += 1
        new = [request for request in seated if request not in running]
        for request in new:
            if request.first_scheduled_s is None:
                request.first_scheduled_s = now_s
            else:
                request.preempted_until_s.append(now_s)
        prefill = sum(request.prompt + request.done for request in new)
        duration_s = slow * (0.008 + 0.0008 * len(seated) + 0.00006 * prefill)
        steps.append(
            {
                "step": len(steps),
                "start_s": now_s,
                "duration_s": duration_s,
                "num_prefill_tokens": prefill,
                "num_decode_tokens": len(seated) - len(new),
                "num_running": len(seated),
                "num_waiting": len(left),
                "kv_blocks_used": sum((request.prompt + request.done) // 16 + 1 for request in seated),
                "num_preemptions": num_preempted,
            }
        )
        now_s += duration_s
        running, waiting = [], left
        for request in seated:
            request.done += 1
            request.tokens_s.append(now_s)
            (ended if request.done == request.output else running).append(request)
    return [_row(request) for request in ended], steps


def _row(request: _Queued) -> dict[str, Any]:
    assert request.first_scheduled_s is not None
    first_s, finish_s = request.tokens_s[0], request.tokens_s[-1]
    gaps = np.diff(request.tokens_s)
    waits = [b - a for a, b in zip(request.preempted_from_s, request.preempted_until_s, strict=True)]
    return {
        "request_id": request.place,
        "warmup": False,
        "client_id": request.client,
        "arrival_s": request.arrival_s,
        "first_scheduled_s": request.first_scheduled_s,
        "first_token_s": first_s,
        "finish_s": finish_s,
        "ttft_s": first_s - request.arrival_s,
        "tpot_s": (finish_s - first_s) / (request.output - 1),
        "e2e_s": finish_s - request.arrival_s,
        "queue_s": request.first_scheduled_s - request.arrival_s,
        "itl_max_s": float(gaps.max()),
        "num_prompt_tokens": request.prompt,
        "num_output_tokens": request.output,
        "num_preemptions": len(waits),
        "preempted_s": float(sum(waits)),
        "preempted_from_s": request.preempted_from_s,
        "preempted_until_s": request.preempted_until_s,
        "num_recomputed_tokens": 40 * len(waits),
        "finish_reason": "length",
    }


def run_row(requests: Sequence[Mapping[str, Any]], rate_rps: float) -> dict[str, Any]:
    """Columns of `runs` that follow from the requests."""
    duration_s = max(row["finish_s"] for row in requests)
    tokens = sum(row["num_output_tokens"] for row in requests)
    met = [row["ttft_s"] < 1.0 and row["tpot_s"] < 0.05 for row in requests]
    made: dict[str, Any] = {
        "num_requests": len(requests),
        "num_prompt_tokens": sum(row["num_prompt_tokens"] for row in requests),
        "num_output_tokens": tokens,
        "duration_s": duration_s,
        "request_throughput_rps": len(requests) / duration_s,
        "output_throughput_tps": tokens / duration_s,
        "goodput_rps": sum(met) / duration_s,
        "slo_attainment_fraction": float(np.mean(met)),
        "num_preemptions": sum(row["num_preemptions"] for row in requests),
        "num_recomputed_tokens": sum(row["num_recomputed_tokens"] for row in requests),
        "offered_rate_rps": rate_rps,
        "kv_blocks_total": 200,
        "prefix_hit_fraction": 0.0,
    }
    for name in ("ttft", "tpot", "e2e", "queue"):
        values = np.array([row[f"{name}_s"] for row in requests])
        made[f"{name}_mean_s"] = float(values.mean())
        made |= {f"{name}_p{q}_s": float(np.percentile(values, q)) for q in (50, 90, 99)}
    gaps = np.array([row["itl_max_s"] for row in requests])
    made |= {"itl_mean_s": made["tpot_mean_s"], "itl_p99_s": float(np.percentile(gaps, 90))}
    served = np.array([sum(r["num_output_tokens"] for r in requests if r["client_id"] == c) for c in range(3)])
    made["jain_fairness_fraction"] = float(served.sum() ** 2 / (3 * (served**2).sum()))
    made["service_gap_max_tokens"] = float(np.ptp([r["ttft_s"] for r in requests])) * 100
    made["fluidity_mean_fraction"] = float(np.mean([row["tpot_s"] < 0.03 for row in requests]))
    return made


def write_policies(
    folder: Path,
    *,
    policies: Sequence[str] = ("fcfs", "sjf", "srpt"),
    rates: Sequence[float] = (4, 8, 12),
    workloads: Sequence[str] = ("chat",),
    repeats: int = 3,
    num_requests: int = 50,
    lives: Sequence[bool | None] = (None,),
    slow: float = 1.0,
    knob: str = "scheduler",
) -> Path:
    """A sweep of policies over rates and workloads.

    Args:
        lives: False is real, True simulated, None says nothing of it.
        slow: how much longer a simulated step takes than a real one.
        knob: the config key of the policies.
    """
    tables: dict[str, list[dict[str, Any]]] = {"runs": [], "requests": [], "steps": []}
    places = list(itertools.product(lives, policies, rates, workloads))
    for repeat in range(repeats):
        for place, (simulated, policy, rate, workload) in enumerate(places):
            run_id = f"{place:012x}-r{repeat}"
            seed = [workloads.index(workload), repeat]
            factor = slow if simulated else 1.0
            requests, steps = simulate(policy, rate, np.random.default_rng(seed), num_requests, factor)
            tables["runs"].append(
                {
                    **{"schema_version": 6, "sweep": folder.name, "run_id": run_id, "point_id": run_id[:12]},
                    **{"repeat": repeat, "order_index": len(tables["runs"]), "status": "ok"},
                    "workload_sha256": f"{workload} {rate} {repeat}",
                    **{f"cfg.{knob}": policy, "cfg.workload": workload, "cfg.arrivals.rate_rps": float(rate)},
                    "cfg.execution": {None: "cpu", False: "cpu", True: "simulated"}[simulated],
                    "cfg.step_time": "fitted" if simulated else None,
                    "simulated": simulated,
                    **run_row(requests, rate),
                }
            )
            tables["requests"] += [{"run_id": run_id, **row} for row in requests]
            tables["steps"] += [{"run_id": run_id, **row} for row in steps]
    for table, rows in tables.items():
        write_table(folder / table / "all.parquet", rows)
    return folder


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows that need not have the same columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in names}), path)


def write_capacity(folder: Path, capacities: Mapping[str, float]) -> None:
    """What a search by bisection leaves: rates tried, what they met, and the best that met enough.

    Args:
        capacities: highest rate that meets the SLO, by policy.
    """
    rows = [
        {
            "label": f"scheduler={policy} seed=1",
            "cfg.scheduler": policy,
            "cfg.arrivals.rate_rps": best * factor,
            "rate_rps": best * factor,
            "slo_attainment_fraction": 0.999 if factor <= 1 else 0.7,
            "is_capacity": factor == 1,
        }
        for policy, best in capacities.items()
        for factor in (0.5, 2.0, 1.0, 1.05)
    ]
    write_table(folder / "capacity" / "capacity.parquet", rows)
