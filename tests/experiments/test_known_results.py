"""What the literature found about schedulers comes out of the simulator: an 8B model on an H200, one run a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from simulated_runs import simulate

_H200 = (
    *("model=random_qwen3_8b", "hardware=h200", "step_time=roofline", "workload.prompts=lengths_only"),
    *("arrivals=poisson", "scheduler.max_num_batched_tokens=2048", "num_warmup_requests=0"),
)
# Twice what 32 seats carry for a quarter of a minute: the queue is where policies differ.
_CROWDED = ("workload=traffic", "workload.num_requests=500", "arrivals.rate_rps=60", "scheduler.max_num_seqs=32")
_LONG_TAIL = ("lengths=lognormal", "lengths.output.median_tokens=128", "lengths.output.sigma=1.0")


@pytest.fixture
def run(tmp_path: Path):
    def runs(policy: str, *overrides: str) -> tuple[dict[str, Any], pd.DataFrame]:
        return simulate([*_H200, f"scheduler={policy}", *overrides], tmp_path / policy)

    return runs


def test_srpt_beats_fcfs_on_mean_latency_and_starves_the_long_and_aging_ends_that(run) -> None:
    """Schrage 1968 and its price: of the longest answers, the slowest under SRPT waits longer than under FCFS."""
    rows = {policy: run(policy, *_CROWDED, *_LONG_TAIL) for policy in ("fcfs", "srpt")}
    rows["aging"] = run("aging", *_CROWDED, *_LONG_TAIL, "scheduler.tokens_per_s=150")
    mean_s = {policy: columns["e2e_mean_s"] for policy, (columns, _) in rows.items()}
    assert mean_s["srpt"] < 0.7 * mean_s["fcfs"]
    assert mean_s["srpt"] < mean_s["aging"] < mean_s["fcfs"]

    def longest_wait_s(policy: str) -> float:
        _, requests = rows[policy]
        long = requests[requests["num_output_tokens"] >= requests["num_output_tokens"].quantile(0.95)]
        return float((long["queue_s"] + long["preempted_s"].fillna(0)).max())

    assert longest_wait_s("srpt") > 2 * longest_wait_s("fcfs")
    assert longest_wait_s("aging") < 0.7 * longest_wait_s("srpt")


def test_stall_free_chunks_cut_the_tail_of_gaps_between_tokens_against_prefill_first(run) -> None:
    """Sarathi-Serve: decodes do not wait behind prompts, so the tail of the gaps is that of one step."""
    load = (
        *("workload=traffic", "workload.num_requests=300", "arrivals.rate_rps=6", "scheduler.max_num_seqs=64"),
        *("lengths=lognormal", "lengths.prompt.median_tokens=2000", "lengths.prompt.max_tokens=3500"),
    )
    sarathi, _ = run("sarathi", *load, "scheduler.step_tokens=512")
    prefill_first, _ = run("prefill_first", *load)
    assert sarathi["itl_p99_s"] < 0.5 * prefill_first["itl_p99_s"]
    assert sarathi["output_throughput_tps"] > 0.95 * prefill_first["output_throughput_tps"]


def test_fair_shares_bound_the_service_gap_that_fcfs_does_not(run) -> None:
    """VTC (2401.00588): while two clients wait, what they get differs by no more than twice the weight of an output
    token times the tokens that the K/V pool holds; first come, first served knows no bound."""
    load = (
        *(*_CROWDED, *_LONG_TAIL, "clients=several", "clients.num_clients=2"),
        *("clients.shares=[9,1]", "clients.zipf_exponent=0", "cache.num_blocks=800"),
    )
    gaps = {policy: run(policy, *load)[0]["service_gap_max_tokens"] for policy in ("fcfs", "vtc")}
    bound = 2 * 2 * 800 * 16
    assert gaps["vtc"] <= bound / 10 and bound < gaps["fcfs"]


def test_the_longest_prefix_first_raises_the_hit_rate_of_a_tree(run) -> None:
    """SGLang's cache-aware order, where the cache is smaller than the tree."""
    load = (
        *("workload=prefix_tree", "workload.num_requests=400", "workload.depth=2", "workload.fan_out=8"),
        *("workload.node_tokens=512", "workload.zipf_exponent=0", "arrivals.rate_rps=200", "scheduler.max_num_seqs=16"),
        *("cache.num_blocks=1500",),
    )
    hits = {policy: run(policy, *load)[0]["prefix_hit_fraction"] for policy in ("fcfs", "longest_prefix_match")}
    assert hits["longest_prefix_match"] > 1.2 * hits["fcfs"]
