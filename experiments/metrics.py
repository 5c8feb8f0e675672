"""From instants to numbers, each defined by what was stamped and nothing else.

TTFT = first token - arrival. TPOT = (finish - first token) / (n - 1), null for n = 1. ITL = every gap between two
tokens of a request, pooled over requests. E2E = finish - arrival. Queue = first scheduled - arrival. Goodput =
requests a second that meet every limit; attainment is a fraction of the requests *offered*, not of those finished.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.drive import Driven
from experiments.points import Slo
from experiments.tables import STEPS
from minivllm.plan import StepReport
from minivllm.request import FinishReason, Request

_DONE = (FinishReason.STOP, FinishReason.LENGTH)


def request_rows(driven: Driven, slo: Slo, *, origin_s: float, warmup: bool = False) -> list[dict[str, Any]]:
    """Rows of the `requests` table, in order of request id.

    Args:
        driven: what ran.
        slo: the limits.
        origin_s: the instant that times count from.
        warmup: whether these are warm-up requests.
    """
    return [_request_row(r, driven.lateness_s.get(r.request_id), slo, origin_s, warmup) for r in driven.requests]


def _request_row(request: Request, lateness_s: float | None, slo: Slo, origin_s: float, warmup: bool) -> dict[str, Any]:
    arrival_s, first_s, finish_s = request.arrival_s, request.first_token_s, request.finish_s
    count = request.num_output_tokens
    ttft_s = None if first_s is None else first_s - arrival_s
    tpot_s = None
    if first_s is not None and finish_s is not None and count > 1:
        tpot_s = (finish_s - first_s) / (count - 1)
    tokens = np.asarray(request.output_token_ids, dtype="<i8").tobytes()
    return {
        "request_id": request.request_id,
        "warmup": warmup,
        "client_id": request.client_id,
        "arrival_s": arrival_s - origin_s,
        "arrival_lateness_s": lateness_s,
        "first_scheduled_s": _since(request.first_scheduled_s, origin_s),
        "first_token_s": _since(first_s, origin_s),
        "finish_s": _since(finish_s, origin_s),
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "e2e_s": _since(finish_s, arrival_s),
        "queue_s": _since(request.first_scheduled_s, arrival_s),
        "num_prompt_tokens": request.num_prompt_tokens,
        "num_output_tokens": count,
        "num_cached_tokens": request.num_cached_tokens,
        "num_preemptions": request.num_preemptions,
        "finish_reason": None if request.finish_reason is None else request.finish_reason.value,
        "slo_met": _slo_met(request, ttft_s, tpot_s, slo) if slo.given else None,
        "output_sha256": hashlib.sha256(tokens).hexdigest(),
    }


def _slo_met(request: Request, ttft_s: float | None, tpot_s: float | None, slo: Slo) -> bool:
    if request.finish_reason not in _DONE or ttft_s is None:
        return False
    # A single token has no time between tokens to be late with.
    return (slo.ttft_s is None or ttft_s <= slo.ttft_s) and (
        slo.tpot_s is None or tpot_s is None or tpot_s <= slo.tpot_s
    )


def step_rows(steps: Sequence[StepReport], *, origin_s: float) -> list[dict[str, Any]]:
    """Rows of the `steps` table."""
    names = [name for name in STEPS.names if name not in ("schema_version", "run_id", "start_s")]
    return [{n: getattr(s, n) for n in names} | {"start_s": s.start_s - origin_s} for s in steps]


def run_columns(
    driven: Driven,
    rows: Sequence[Mapping[str, Any]],
    slo: Slo,
    *,
    num_offered: int,
    num_blocks: int,
    block_size: int,
) -> dict[str, Any]:
    """Columns of `runs` that come from the measured requests and steps.

    Args:
        rows: of the measured requests.
        num_offered: requests that the workload sent.
        num_blocks, block_size: of the KV pool.
    """
    duration_s = max((r["finish_s"] for r in rows if r["finish_s"] is not None), default=0.0)
    num_prompt = sum(r["num_prompt_tokens"] for r in rows)
    num_output = sum(r["num_output_tokens"] for r in rows)
    num_done = sum(r["finish_reason"] in ("stop", "length") for r in rows)
    num_met = sum(bool(r["slo_met"]) for r in rows)
    gaps = [np.diff(r.token_times_s) for r in driven.requests if r.num_output_tokens > 1]
    latencies = {
        "ttft": [r["ttft_s"] for r in rows],
        "tpot": [r["tpot_s"] for r in rows],
        "itl": np.concatenate(gaps) if gaps else [],
        "e2e": [r["e2e_s"] for r in rows],
        "queue": [r["queue_s"] for r in rows],
    }
    columns: dict[str, Any] = {
        "num_requests": len(rows),
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        "duration_s": duration_s,
        "request_throughput_rps": _ratio(num_done, duration_s),
        "output_throughput_tps": _ratio(num_output, duration_s),
        "total_throughput_tps": _ratio(num_prompt + num_output, duration_s),
        "goodput_rps": _ratio(num_met, duration_s) if slo.given else None,
        "slo_attainment_fraction": _ratio(num_met, num_offered) if slo.given else None,
        "prefix_hit_fraction": _ratio(sum(r["num_cached_tokens"] for r in rows), num_prompt),
    }
    for what, values in latencies.items():
        columns |= _summary(what, values)
    return columns | _step_columns(driven.steps, num_blocks, block_size)


def _step_columns(steps: Sequence[StepReport], num_blocks: int, block_size: int) -> dict[str, Any]:
    drafted, accepted = sum(s.num_draft_tokens for s in steps), sum(s.num_accepted_tokens for s in steps)
    used = [s for s in steps if s.kv_blocks_used]
    return {
        "kv_blocks_total": num_blocks,
        "kv_utilization_mean_fraction": _mean([s.kv_blocks_used / num_blocks for s in steps]),
        # Of the slots in used blocks, those that hold no K/V.
        "kv_fragmentation_mean_fraction": _mean([s.kv_slots_unused / (s.kv_blocks_used * block_size) for s in used]),
        "num_evictions": sum(s.num_evictions for s in steps),
        "num_preemptions": sum(s.num_preemptions for s in steps),
        "num_recomputed_tokens": sum(s.num_recomputed_tokens for s in steps),
        "num_draft_tokens": drafted or None,
        "num_accepted_tokens": accepted if drafted else None,
        "acceptance_rate": accepted / drafted if drafted else None,
    }


def peak_process_bytes() -> int:
    """Largest resident size of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def _summary(what: str, values: Sequence[float | None] | np.ndarray) -> dict[str, float | None]:
    """Mean and percentiles; null where there is nothing to summarize."""
    known = np.asarray([v for v in values if v is not None], dtype=np.float64)
    if not known.size:
        return {f"{what}_{stat}_s": None for stat in ("mean", "p50", "p90", "p99")}
    p50, p90, p99 = np.percentile(known, (50, 90, 99))
    return {
        f"{what}_mean_s": float(known.mean()),
        f"{what}_p50_s": float(p50),
        f"{what}_p90_s": float(p90),
        f"{what}_p99_s": float(p99),
    }


def _since(at_s: float | None, origin_s: float) -> float | None:
    return None if at_s is None else at_s - origin_s


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
