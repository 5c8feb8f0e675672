"""From instants to numbers, each defined by what was stamped and nothing else.

TTFT = first token - arrival. TPOT = (finish - first token) / (n - 1), null for n = 1. ITL = every gap between two
tokens of a request, pooled over requests. E2E = finish - arrival. Queue = first scheduled - arrival. Goodput =
requests a second that meet every limit; attainment is a fraction of the requests *offered*, not of those finished.
The cost of a million output tokens is what the machine costs while the run lasts, over the tokens that it made.
Acceptance rate = drafts accepted / drafts proposed. Acceptance length = tokens emitted a verification, the target's own
included: 1 + accepted / verifications. Without speculation there is neither, and counts are null.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from experiments.drive import Driven
from experiments.points import Slo
from experiments.tables import BY_POSITION, STEPS
from minivllm.plan import StepReport
from minivllm.request import FinishReason, Request, Speculated

# Of a step, and null where speculation is off.
_SPECULATED = ("num_draft_tokens", "num_accepted_tokens", "num_verifications")
_DONE = (FinishReason.STOP, FinishReason.LENGTH)


def request_rows(
    driven: Driven, slo: Slo, *, origin_s: float, warmup: bool = False, speculates: bool = False
) -> list[dict[str, Any]]:
    """Rows of the `requests` table, in order of request id.

    Args:
        driven: what ran.
        slo: the limits.
        origin_s: the instant that times count from.
        warmup: whether these are warm-up requests.
        speculates: whether the engine drafts.
    """
    rows = [_request_row(r, driven.lateness_s.get(r.request_id), slo, origin_s, warmup) for r in driven.requests]
    if speculates:
        for row, request in zip(rows, driven.requests, strict=True):
            row |= acceptance([request.speculated])
    return rows


def acceptance(requests: Sequence[Speculated]) -> dict[str, Any]:
    """Columns of what came of the drafts of some requests together."""
    num_verifications = sum(one.num_verifications for one in requests)
    drafted = sum(one.num_draft_tokens for one in requests)
    accepted = sum(one.num_accepted_tokens for one in requests)
    lists = (
        [one.proposed for one in requests],
        [one.evaluated for one in requests],
        [one.accepted for one in requests],
    )
    by_position = ([sum(counts) for counts in zip_longest(*several, fillvalue=0)] for several in lists)
    return {
        "num_verifications": num_verifications,
        "num_draft_tokens": drafted,
        "num_accepted_tokens": accepted,
        "acceptance_rate": _ratio(accepted, drafted),
        "acceptance_length": 1 + accepted / num_verifications if num_verifications else None,
        **dict(zip(BY_POSITION, by_position, strict=True)),
    }


def _request_row(request: Request, lateness_s: float | None, slo: Slo, origin_s: float, warmup: bool) -> dict[str, Any]:
    arrival_s, first_s, finish_s = request.arrival_s, request.first_token_s, request.finish_s
    count = request.num_output_tokens
    ttft_s = None if first_s is None else first_s - arrival_s
    tpot_s = None
    if first_s is not None and finish_s is not None and count > 1:
        tpot_s = (finish_s - first_s) / (count - 1)
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
        "prompt_sha256": _sha256(request.token_ids[: request.num_prompt_tokens]),
        "output_sha256": _sha256(request.output_token_ids),
    }


def _sha256(token_ids: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(token_ids, dtype="<i8").tobytes()).hexdigest()


def _slo_met(request: Request, ttft_s: float | None, tpot_s: float | None, slo: Slo) -> bool:
    if request.finish_reason not in _DONE or ttft_s is None:
        return False
    # A single token has no time between tokens to be late with.
    return (slo.ttft_s is None or ttft_s <= slo.ttft_s) and (
        slo.tpot_s is None or tpot_s is None or tpot_s <= slo.tpot_s
    )


def step_rows(
    steps: Sequence[StepReport],
    seen: Sequence[Mapping[str, Any]],
    *,
    origin_s: float,
    num_blocks: int,
    block_size: int,
    speculates: bool = False,
) -> list[dict[str, Any]]:
    """Rows of the `steps` table.

    Args:
        steps: as the engine reported them.
        seen: further columns of each step, from whoever watched.
        origin_s: the instant that times count from.
        num_blocks, block_size: of the KV pool.
        speculates: whether the engine drafts.
    """
    reported = {f.name for f in dataclasses.fields(StepReport)} - {"start_s"}
    reported -= set() if speculates else set(_SPECULATED)
    names = [name for name in STEPS.names if name in reported]
    rows: list[dict[str, Any]] = []
    end_s: float | None = None
    for step, more in zip(steps, seen, strict=True):
        used = step.kv_blocks_used
        rows.append(
            {name: getattr(step, name) for name in names}
            | {
                "start_s": step.start_s - origin_s,
                "client_s": None if end_s is None else step.start_s - end_s,
                "kv_utilization_fraction": used / num_blocks,
                "kv_fragmentation_fraction": step.kv_slots_unused / (used * block_size) if used else None,
            }
            | dict(more)
        )
        end_s = step.start_s + step.duration_s
    return rows


def run_columns(
    driven: Driven,
    rows: Sequence[Mapping[str, Any]],
    slo: Slo,
    *,
    num_offered: int,
    speculates: bool = False,
) -> dict[str, Any]:
    """Columns of `runs` that come from the measured requests.

    Args:
        rows: of the measured requests.
        num_offered: requests that the workload sent.
        speculates: whether the engine drafts.
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
        "num_recomputed_tokens": sum(step.num_recomputed_tokens for step in driven.steps),
    }
    for what, values in latencies.items():
        columns |= _summary(what, values)
    if speculates:
        columns |= acceptance([r.speculated for r in driven.requests])
    return columns


def step_summary(rows: Sequence[Mapping[str, Any]], *, num_blocks: int) -> dict[str, Any]:
    """Columns of `runs` that come from rows of `steps`."""

    def known(name: str) -> list[Any]:
        return [row[name] for row in rows if row.get(name) is not None]

    host_s, run_s = sum(known("schedule_s")) + sum(known("commit_s")), sum(known("run_s"))
    counted, device = known("counted_bytes"), known("device_s")
    whole_s = sum(known("duration_s")) + sum(known("client_s"))
    return {
        "kv_blocks_total": num_blocks,
        "kv_utilization_mean_fraction": _mean(known("kv_utilization_fraction")),
        # Of the slots in used blocks, those that hold no K/V.
        "kv_fragmentation_mean_fraction": _mean(known("kv_fragmentation_fraction")),
        "num_evictions": sum(known("num_evictions")),
        "num_preemptions": sum(known("num_preemptions")),
        **{f"step_{part}_mean_s": _mean(known(f"{part}_s")) for part in ("schedule", "run", "commit", "client")},
        "host_fraction": _ratio(host_s, host_s + run_s),
        "step_device_mean_s": _mean(device),
        "device_idle_fraction": max(0.0, 1 - sum(device) / whole_s) if device and whole_s else None,
        "num_compilations": sum(known("num_compilations")),
        "counted_bytes": float(sum(counted)) if counted else None,
        "counted_flops": float(sum(known("counted_flops"))) if counted else None,
        **(_speculation_shares(known) if known("num_draft_tokens") else {}),
    }


def _speculation_shares(known: Callable[[str], list[Any]]) -> dict[str, Any]:
    whole_s = sum(known("duration_s"))
    return {f"{part}_time_fraction": _ratio(sum(known(f"{part}_s")), whole_s) for part in ("draft", "verify")}


def economy(
    num_output_tokens: int, duration_s: float, energy_j: float | None, price_per_hour: float | None
) -> dict[str, Any]:
    """Energy and money over output tokens; null where one of them is unknown."""
    price = None if price_per_hour is None else price_per_hour * duration_s / 3600
    return {
        "energy_j": energy_j,
        "energy_per_output_token_j": None if energy_j is None else _ratio(energy_j, num_output_tokens),
        "cost_per_million_output_tokens": None if price is None else _ratio(price * 1e6, num_output_tokens),
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
