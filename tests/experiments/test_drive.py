"""The driver against a real engine on a virtual clock, where every time is known."""

from __future__ import annotations

import pytest

from experiments.drive import Driven, drive
from experiments.metrics import request_rows, run_columns, step_rows, step_summary
from experiments.points import Slo
from experiments.workloads.base import WorkloadItem
from minivllm.clock import VirtualClock
from minivllm.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from minivllm.engine import Engine
from minivllm.plan import SampledTokens, StepPlan, StepResult
from minivllm.runner.base import Done, MemoryReport
from minivllm.sampling_params import SamplingParams

STEP_S = 0.5


class _OneTokenAStep:
    """A device wing that takes half a second a step, and says 7."""

    num_blocks, num_swap_blocks, max_model_len = 64, 0, 64
    vocab_size, eos_token_ids = 10, frozenset[int]()

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def launch(self, plan: StepPlan) -> Done:
        self._clock.advance(STEP_S)
        ids = [chunk.request_id for chunk in plan.chunks if chunk.samples]
        return Done(result=StepResult(samples=tuple(SampledTokens(request_id=i, token_ids=(7,)) for i in ids)))

    def memory(self) -> MemoryReport:
        return MemoryReport(weights_bytes=0, kv_cache_bytes=0)


def _make_engine(**scheduler: int) -> Engine:
    clock = VirtualClock()
    config = EngineConfig(
        model=ModelConfig(path="x"),
        cache=CacheConfig(block_size=4, prefix_caching=False),
        scheduler=SchedulerConfig(**scheduler),
    )
    clock.advance(100.0)
    return Engine(config, _OneTokenAStep(clock), clock)


def _make_items(count: int, max_tokens: int = 3, arrivals: list[float] | None = None) -> list[WorkloadItem]:
    return [
        WorkloadItem(prompt_token_ids=(i, 1), max_tokens=max_tokens, arrival_s=arrivals[i] if arrivals else None)
        for i in range(count)
    ]


def _rows(driven: Driven, slo: Slo | None = None) -> list[dict]:
    return request_rows(driven, slo or Slo(), origin_s=driven.start_s)


def test_a_closed_loop_keeps_its_clients_busy_and_no_more() -> None:
    driven = drive(_make_engine(), _make_items(5), SamplingParams(temperature=0), concurrency=2)
    # Two at a time, three steps each.
    assert [row["arrival_s"] for row in _rows(driven)] == [0.0, 0.0, 1.5, 1.5, 3.0]
    assert [step.num_running for step in driven.steps][:2] == [2, 2]
    assert driven.end_s - driven.start_s == pytest.approx(4.5)
    assert driven.lateness_s == {}


def test_all_continuations_of_a_prompt_occupy_one_client() -> None:
    driven = drive(_make_engine(), _make_items(3), SamplingParams(temperature=1, n=2), concurrency=1)
    rows = _rows(driven)
    assert len(rows) == 6
    for pair, after in ((rows[0:2], rows[2:4]), (rows[2:4], rows[4:6])):
        assert [row["arrival_s"] for row in after] == [max(row["finish_s"] for row in pair)] * 2


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    items = _make_items(3, arrivals=[0.25, 0.6, 3.0])
    driven = drive(_make_engine(), items, SamplingParams(temperature=0), concurrency=None)
    rows = _rows(driven)
    assert [row["arrival_s"] for row in rows] == pytest.approx([0.25, 0.6, 3.0])
    # The second came in the middle of a step, and the client saw it at its end.
    assert list(driven.lateness_s.values()) == pytest.approx([0.0, 0.15, 0.0])
    assert [row["first_scheduled_s"] for row in rows] == pytest.approx([0.25, 0.75, 3.0])
    assert [row["queue_s"] for row in rows] == pytest.approx([0.0, 0.15, 0.0])
    assert [row["ttft_s"] for row in rows] == pytest.approx([0.5, 0.65, 0.5])
    # Nobody spins while nothing is due: three steps for the first two, staggered by one, and three for the last.
    assert len(driven.steps) == 7


def test_an_engine_that_cannot_keep_up_shows_its_queue() -> None:
    items = _make_items(4, arrivals=[0.0, 0.0, 0.0, 0.0])
    driven = drive(_make_engine(max_num_seqs=1), items, SamplingParams(temperature=0), concurrency=None)
    assert [row["queue_s"] for row in _rows(driven)] == pytest.approx([0.0, 1.5, 3.0, 4.5])


def test_metrics_are_what_their_definitions_say() -> None:
    items = _make_items(4, arrivals=[0.0, 0.0, 0.0, 0.0])
    slo = Slo(ttft_s=2.0, tpot_s=0.5)
    driven = drive(_make_engine(max_num_seqs=1), items, SamplingParams(temperature=0), concurrency=None)
    rows = _rows(driven, slo)
    assert [row["ttft_s"] for row in rows] == pytest.approx([0.5, 2.0, 3.5, 5.0])
    assert [row["tpot_s"] for row in rows] == pytest.approx([0.5] * 4)
    assert [row["slo_met"] for row in rows] == [True, True, False, False]
    run = run_columns(driven, rows, slo, num_offered=4)
    assert run["duration_s"] == pytest.approx(6.0)
    assert run["output_throughput_tps"] == pytest.approx(12 / 6)
    assert run["total_throughput_tps"] == pytest.approx(20 / 6)
    assert run["goodput_rps"] == pytest.approx(2 / 6)
    assert run["slo_attainment_fraction"] == pytest.approx(0.5)
    assert run["ttft_p50_s"] == pytest.approx(2.75)
    assert run["itl_mean_s"] == pytest.approx(0.5)
    more = {"process_bytes": None, "counted_bytes": 10, "counted_flops": 20}
    steps = step_rows(driven.steps, [more] * 12, origin_s=driven.start_s, num_blocks=64, block_size=4)
    # A request of 2 + 3 tokens has room for 4 in its first block; the last token is never computed.
    assert [row["kv_utilization_fraction"] for row in steps[:3]] == [1 / 64, 1 / 64, 0]
    assert [row["kv_fragmentation_fraction"] for row in steps[:3]] == [0.5, 0.25, None]
    assert [row["client_s"] for row in steps[:2]] == [None, 0.0]
    summary = step_summary(steps, num_blocks=64)
    assert not [name for name in summary if "draft" in name or "accept" in name]
    assert {row.get("num_draft_tokens") for row in steps} == {None}
    assert (summary["step_run_mean_s"], summary["host_fraction"]) == (0.5, 0)
    assert (summary["counted_bytes"], summary["counted_flops"]) == (120, 240)


def test_one_token_has_no_time_between_tokens() -> None:
    driven = drive(_make_engine(), _make_items(2, max_tokens=1), SamplingParams(temperature=0), concurrency=2)
    rows = _rows(driven, Slo(tpot_s=0.1))
    assert [row["tpot_s"] for row in rows] == [None, None]
    assert [row["slo_met"] for row in rows] == [True, True]
    run = run_columns(driven, rows, Slo(), num_offered=2)
    assert run["tpot_p50_s"] is None and run["itl_p99_s"] is None
    assert run["goodput_rps"] is None


def test_attainment_counts_offered_requests() -> None:
    driven = drive(_make_engine(), _make_items(2), SamplingParams(temperature=0), concurrency=2)
    rows = _rows(driven, Slo(ttft_s=10))
    run = run_columns(driven, rows, Slo(ttft_s=10), num_offered=8)
    assert run["slo_attainment_fraction"] == pytest.approx(0.25)


@pytest.mark.parametrize(("key", "value"), [("ttft_s", 0), ("tpot_s", -1), ("ttft_s", True), ("tpot_s", "1")])
def test_a_limit_that_is_none_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"slo.{key}="):
        Slo(**{key: value})
