"""The metrics again, all at once and a row at a time: what the streams must come to."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.drive import Collected
from experiments.points import Slo
from minivllm.plan import StepReport
from minivllm.request import FinishReason, Request

_DONE = (FinishReason.STOP, FinishReason.LENGTH)


def request_rows(heard: Collected, slo: Slo, origin_s: float) -> list[dict[str, Any]]:
    """In order of request id."""
    ordered = sorted(heard.requests, key=lambda request: request.request_id)
    return [_request_row(r, heard.lateness_s.get(r.request_id), slo, origin_s) for r in ordered]


def _request_row(r: Request, lateness_s: float | None, slo: Slo, origin_s: float) -> dict[str, Any]:
    first_s, finish_s, count = r.first_token_s, r.finish_s, r.num_output_tokens
    ttft_s = None if first_s is None else first_s - r.arrival_s
    tpot_s = (finish_s - first_s) / (count - 1) if first_s is not None and finish_s is not None and count > 1 else None
    gaps = [b - a for a, b in zip(r.token_times_s, r.token_times_s[1:], strict=False)]
    met = r.finish_reason in _DONE and ttft_s is not None
    met = met and (slo.ttft_s is None or ttft_s <= slo.ttft_s)
    met = met and (slo.tpot_s is None or tpot_s is None or tpot_s <= slo.tpot_s)
    return {
        "request_id": r.request_id,
        "warmup": False,
        "client_id": r.client_id,
        "priority": r.priority,
        "arrival_s": r.arrival_s - origin_s,
        "arrival_lateness_s": lateness_s,
        "first_scheduled_s": _since(r.first_scheduled_s, origin_s),
        "first_token_s": _since(first_s, origin_s),
        "finish_s": _since(finish_s, origin_s),
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "e2e_s": _since(finish_s, r.arrival_s),
        "queue_s": _since(r.first_scheduled_s, r.arrival_s),
        "itl_max_s": max(gaps, default=None),
        "num_prompt_tokens": r.num_prompt_tokens,
        "num_output_tokens": count,
        "predicted_output_tokens": r.predicted_output_tokens,
        "num_cached_tokens": r.num_cached_tokens,
        "num_preemptions": r.num_preemptions,
        "num_recomputed_tokens": r.num_recomputed_tokens,
        "preempted_from_s": [at_s - origin_s for at_s in r.preempted_at_s],
        "preempted_until_s": [at_s - origin_s for at_s in _resumed(r)],
        "preempted_s": sum(b - a for a, b in zip(r.preempted_at_s, _resumed(r), strict=True)),
        "finish_reason": None if r.finish_reason is None else r.finish_reason.value,
        "slo_met": met if slo.given else None,
        "fluidity_fraction": fluidity(r.token_times_s, r.arrival_s, slo) if slo.given else None,
        "prompt_sha256": _sha256(r.token_ids[: r.num_prompt_tokens]),
        "output_sha256": _sha256(r.output_token_ids),
    }


def fluidity(times_s: Sequence[float], arrival_s: float, slo: Slo) -> float | None:
    """As etalon's algorithm goes: token by token, with the slack in hand."""
    total = missed = 0
    slack_s, last_s = 0.0, arrival_s
    for i, at_s in enumerate(times_s):
        limit_s = slo.ttft_s if i == 0 else slo.tpot_s
        took_s, last_s = at_s - last_s, at_s
        if limit_s is None:
            continue
        late_s = took_s - limit_s - slack_s
        if late_s <= 0:
            slack_s = -late_s
            total += 1
            continue
        misses = 1 + (math.floor(late_s / slo.tpot_s) if slo.tpot_s is not None else 0)
        slack_s = 0.0
        missed, total = missed + misses, total + misses
    return 1 - missed / total if total else None


def step_rows(steps: Sequence[StepReport], origin_s: float, num_blocks: int, block_size: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    end_s: float | None = None
    for step in steps:
        used = step.kv_blocks_used
        rows.append(
            {f.name: getattr(step, f.name) for f in dataclasses.fields(StepReport)}
            | {
                "start_s": step.start_s - origin_s,
                "client_s": None if end_s is None else step.start_s - end_s,
                "kv_utilization_fraction": used / num_blocks,
                "kv_fragmentation_fraction": step.kv_slots_unused / (used * block_size) if used else None,
            }
        )
        end_s = step.start_s + step.duration_s
    return rows


def run_columns(heard: Collected, rows: Sequence[dict[str, Any]], slo: Slo, num_offered: int) -> dict[str, Any]:
    duration_s = max((r["finish_s"] for r in rows if r["finish_s"] is not None), default=0.0)
    num_prompt, num_output = (sum(r[f"num_{what}_tokens"] for r in rows) for what in ("prompt", "output"))
    num_met = sum(bool(r["slo_met"]) for r in rows)
    gaps = [gap for r in heard.requests for gap in np.diff(r.token_times_s)]
    latencies = {what: [r[f"{what}_s"] for r in rows] for what in ("ttft", "tpot", "e2e", "queue")} | {"itl": gaps}
    waited_s = sum(r["e2e_s"] if r["queue_s"] is None else r["queue_s"] for r in rows)
    waited_s += sum(r["preempted_s"] for r in rows)
    fluid = [r["fluidity_fraction"] for r in rows if r["fluidity_fraction"] is not None]
    columns: dict[str, Any] = {
        "num_requests": len(rows),
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        "duration_s": duration_s,
        "request_throughput_rps": _ratio(sum(r["finish_reason"] in ("stop", "length") for r in rows), duration_s),
        "output_throughput_tps": _ratio(num_output, duration_s),
        "total_throughput_tps": _ratio(num_prompt + num_output, duration_s),
        "goodput_rps": _ratio(num_met, duration_s) if slo.given else None,
        "slo_attainment_fraction": _ratio(num_met, num_offered) if slo.given else None,
        "num_waiting_mean": _ratio(waited_s, duration_s),
        "fluidity_mean_fraction": sum(fluid) / len(fluid) if fluid else None,
        "prefix_hit_fraction": _ratio(sum(r["num_cached_tokens"] for r in rows), num_prompt),
        "num_recomputed_tokens": sum(step.num_recomputed_tokens for step in heard.steps),
    }
    for what, values in latencies.items():
        known = np.array([v for v in values if v is not None], dtype=np.float64)
        columns[f"{what}_mean_s"] = float(known.mean()) if known.size else None
        for percent in (50, 90, 99):
            columns[f"{what}_p{percent}_s"] = float(np.percentile(known, percent)) if known.size else None
    return columns


def step_summary(rows: Sequence[dict[str, Any]], num_blocks: int) -> dict[str, Any]:
    def known(name: str) -> list[Any]:
        return [row[name] for row in rows if row.get(name) is not None]

    def mean(name: str) -> float | None:
        return float(np.mean(known(name))) if known(name) else None

    host_s, run_s = sum(known("schedule_s")) + sum(known("commit_s")), sum(known("run_s"))
    return {
        "kv_blocks_total": num_blocks,
        "kv_utilization_mean_fraction": mean("kv_utilization_fraction"),
        "kv_fragmentation_mean_fraction": mean("kv_fragmentation_fraction"),
        "num_evictions": sum(known("num_evictions")),
        "num_preemptions": sum(known("num_preemptions")),
        **{f"step_{part}_mean_s": mean(f"{part}_s") for part in ("schedule", "run", "commit", "client")},
        "host_fraction": _ratio(host_s, host_s + run_s),
        "step_device_mean_s": mean("device_s"),
        "num_compilations": sum(known("num_compilations")),
    }


def _resumed(r: Request) -> list[float]:
    """One that ended while it waited did so until then."""
    assert r.finish_s is not None
    return [*r.resumed_at_s, r.finish_s][: len(r.preempted_at_s)]


def _sha256(token_ids: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(token_ids, dtype="<i8").tobytes()).hexdigest()


def _since(at_s: float | None, origin_s: float) -> float | None:
    return None if at_s is None else at_s - origin_s


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
