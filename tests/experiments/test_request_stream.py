"""Rows and columns that are made as requests end and steps are over, against the same made all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_metrics import fluidity, request_rows, run_columns, step_rows, step_summary
from virtual_engine import make_engine

from experiments import request_stream, step_stream, streams
from experiments.drive import Collected, drive
from experiments.fluidity import fluidity_fractions
from experiments.points import Slo
from experiments.request_stream import RequestStream
from experiments.step_stream import StepStream
from experiments.streams import TableStream
from experiments.workloads.base import WorkloadItem
from minivllm.engine import Engine
from minivllm.sampling_params import SamplingParams
from minivllm.simulation.base import StepWork

NO_WORK = StepWork()


class _Measured:
    """What streams made of a run, and what it was."""

    def __init__(
        self,
        engine: Engine,
        items: list[WorkloadItem],
        folder: Path,
        slo: Slo | None = None,
        *,
        concurrency: int | None = None,
        counted: tuple[int | None, int | None] = (None, None),
    ) -> None:
        self.slo, self.engine = slo or Slo(), engine
        self.heard = Collected()
        origin_s = engine.clock.now_s()
        self.driven = drive(engine, items, SamplingParams(temperature=0), concurrency=concurrency, listener=self.heard)
        tables = {name: TableStream(folder / f"{name}.parquet", name, "a-r0") for name in ("requests", "steps")}
        self.requests = RequestStream(tables["requests"], self.slo, origin_s=origin_s)
        self.steps = StepStream(
            tables["steps"], origin_s=origin_s, num_blocks=engine.num_blocks, block_size=engine.block_size
        )
        for report in self.heard.steps:
            self.steps.add(report, NO_WORK, None, *counted)
        for request in self.heard.requests:
            self.requests.add(request, self.heard.lateness_s.get(request.request_id))
        last_due_s = None if self.driven.last_due_s is None else self.driven.last_due_s - origin_s
        self.run = self.requests.run_columns(num_offered=self.driven.num_offered, last_due_s=last_due_s)
        self.run |= self.steps.run_columns()
        self.tables = {}
        for name, table in tables.items():
            table.close()
            self.tables[name] = pd.read_parquet(folder / f"{name}.parquet")
        # The same, plainly.
        self.request_rows = request_rows(self.heard, self.slo, origin_s)
        self.step_rows = step_rows(self.heard.steps, origin_s, engine.num_blocks, engine.block_size)
        self.plain = run_columns(self.heard, self.request_rows, self.slo, self.driven.num_offered)
        self.plain |= step_summary(self.step_rows, engine.num_blocks)


def _make_items(count: int, max_tokens: int = 3, arrivals: list[float] | None = None) -> list[WorkloadItem]:
    return [
        WorkloadItem(prompt_token_ids=(i % 10, 1), max_tokens=max_tokens, arrival_s=arrivals[i] if arrivals else None)
        for i in range(count)
    ]


def test_metrics_are_what_their_definitions_say(tmp_path: Path) -> None:
    slo = Slo(ttft_s=2.0, tpot_s=0.5)
    items = _make_items(4, arrivals=[0.0, 0.0, 0.0, 2.0])
    made = _Measured(make_engine(max_num_seqs=1), items, tmp_path, slo, counted=(10, 20))
    rows, steps, run = made.tables["requests"], made.tables["steps"], made.run
    assert rows["ttft_s"].tolist() == pytest.approx([0.5, 2.0, 3.5, 3.0])
    assert rows["tpot_s"].tolist() == pytest.approx([0.5] * 4)
    assert rows["itl_max_s"].tolist() == pytest.approx([0.5] * 4)
    assert rows["slo_met"].tolist() == [True, True, False, False]
    # 1.5 s late is four deadlines missed, and 1 s three.
    assert rows["fluidity_fraction"].tolist() == pytest.approx([1, 1, 2 / 6, 2 / 5])
    assert run["fluidity_mean_fraction"] == pytest.approx((2 + 2 / 6 + 2 / 5) / 4)
    assert run["duration_s"] == pytest.approx(6.0)
    assert run["output_throughput_tps"] == pytest.approx(12 / 6)
    assert run["total_throughput_tps"] == pytest.approx(20 / 6)
    assert run["goodput_rps"] == pytest.approx(2 / 6)
    assert run["slo_attainment_fraction"] == pytest.approx(0.5)
    assert run["ttft_p50_s"] == pytest.approx(2.5)
    assert run["itl_mean_s"] == pytest.approx(0.5)
    # 0, 1.5, 3 and 2.5 s in the queue, over 6 s.
    assert run["num_waiting_mean"] == pytest.approx(7 / 6)
    assert run["offered_rate_rps"] == pytest.approx(4 / 2)
    assert run["arrival_lateness_p99_s"] == pytest.approx(0)
    # A request of 2 + 3 tokens has room for 4 in its first block; the last token is never computed.
    assert steps["kv_utilization_fraction"][:3].tolist() == [1 / 64, 1 / 64, 0]
    assert steps["kv_fragmentation_fraction"][:2].tolist() == [0.5, 0.25]
    assert pd.isna(steps["kv_fragmentation_fraction"][2]) and pd.isna(steps["client_s"][0])
    assert steps["client_s"][1] == 0
    assert not [name for name in run if "draft" in name or "accept" in name]
    assert steps["num_draft_tokens"].isna().all()
    assert (run["step_run_mean_s"], run["host_fraction"]) == (0.5, 0)
    assert (run["counted_bytes"], run["counted_flops"]) == (120, 240)


def test_one_token_has_no_time_between_tokens(tmp_path: Path) -> None:
    made = _Measured(make_engine(), _make_items(2, max_tokens=1), tmp_path, Slo(tpot_s=0.1), concurrency=2)
    rows = made.tables["requests"]
    assert rows["tpot_s"].isna().all() and rows["itl_max_s"].isna().all() and rows["fluidity_fraction"].isna().all()
    assert rows["slo_met"].tolist() == [True, True]
    assert made.run["tpot_p50_s"] is None and made.run["itl_p99_s"] is None
    assert made.run["offered_rate_rps"] is None and made.run["arrival_lateness_p99_s"] is None


def test_without_limits_there_is_no_goodput(tmp_path: Path) -> None:
    made = _Measured(make_engine(), _make_items(2), tmp_path, concurrency=2)
    assert made.run["goodput_rps"] is None and made.run["fluidity_mean_fraction"] is None
    assert made.tables["requests"]["slo_met"].isna().all()


def test_attainment_counts_turns_that_were_never_sent(tmp_path: Path) -> None:
    turns = [WorkloadItem(prompt_token_ids=(1,), max_tokens=3, follows=i) for i in range(3)]
    made = _Measured(make_engine(longest=8), [*_make_items(1), *turns], tmp_path, Slo(ttft_s=10), concurrency=1)
    assert (made.driven.num_offered, made.driven.num_dropped) == (4, 2)
    assert made.run["slo_attainment_fraction"] == pytest.approx(0.5)


_runs = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=12),
        "gap_s": st.sampled_from([0.0, 0.3, 2.0]),
        "seats": st.integers(1, 4),
        "blocks": st.sampled_from([6, 64]),
        "concurrency": st.none() | st.integers(1, 3),
        "abort": st.booleans(),
        "slo": st.sampled_from([Slo(), Slo(ttft_s=1.0), Slo(tpot_s=0.6), Slo(ttft_s=0.8, tpot_s=0.7)]),
    }
)


@settings(max_examples=40, deadline=None)
@given(drawn=_runs, at_once=st.sampled_from([1, 3, 1000]))
def test_streams_give_what_all_at_once_gives(
    drawn: dict[str, Any], at_once: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    items = [
        WorkloadItem(
            prompt_token_ids=(i % 10,) * num_prompt,
            max_tokens=num_output,
            arrival_s=None if drawn["concurrency"] is not None else i * drawn["gap_s"],
            client_id=i % 3,
        )
        for i, (num_prompt, num_output) in enumerate(drawn["lengths"])
    ]
    # Steps of all lengths, so that no two gaps are the same.
    engine = make_engine(
        step_s=lambda plan: 0.1 + 0.01 * plan.num_tokens + 0.003 * (plan.step % 7),
        num_blocks=drawn["blocks"],
        prefix_caching=True,
        max_num_seqs=drawn["seats"],
        max_num_batched_tokens=8,
    )
    if drawn["abort"]:
        engine.abort_first = True  # type: ignore[attr-defined]
        step = engine.step
        engine.step = lambda: (engine.abort(len(items) // 2), step())[1]  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_stream, "REQUESTS_AT_ONCE", at_once)
        patch.setattr(step_stream, "STEPS_AT_ONCE", at_once)
        patch.setattr(streams, "ROWS_AT_ONCE", 2 * at_once)
        folder = tmp_path_factory.mktemp("tables")
        made = _Measured(engine, items, folder, drawn["slo"], concurrency=drawn["concurrency"])
    for name, rows in (("requests", made.request_rows), ("steps", made.step_rows)):
        table = made.tables[name]
        if name == "requests":
            if at_once == 1000:
                assert table["request_id"].is_monotonic_increasing
            table = table.sort_values("request_id", ignore_index=True)
        plain = pd.DataFrame(rows)
        for column in set(plain.columns) & set(table.columns):
            if column in ("num_draft_tokens", "num_accepted_tokens", "num_verifications"):
                assert table[column].isna().all()
                continue
            expected, found = plain[column].tolist(), table[column].tolist()
            _same(column, found, expected)
    for column, expected in made.plain.items():
        _same(column, [made.run[column]], [expected])


def _same(column: str, found: list[Any], expected: list[Any]) -> None:
    if expected and isinstance(expected[0], list):
        assert [len(one) for one in found] == [len(one) for one in expected], column
        found, expected = ([value for one in several for value in one] for several in (found, expected))
    missing = [value is None or value != value for value in expected]
    assert [value is None or value != value for value in found] == missing, column
    found, expected = ([v for v, gone in zip(x, missing, strict=True) if not gone] for x in (found, expected))
    if expected and not isinstance(expected[0], str):
        # The instants of a run are large beside its steps.
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-11), column
    else:
        assert found == expected, column


# Only its last token is late, and nobody comes behind.
@example(gaps_ms=[[50, 30, 900], []], ttft_s=0.1003217, tpot_s=0.0407123)
@settings(max_examples=200, deadline=None)
@given(
    gaps_ms=st.lists(st.lists(st.integers(1, 900), max_size=12), min_size=1, max_size=6),
    ttft_s=st.none() | st.sampled_from([0.1003217, 0.3507123]),
    tpot_s=st.none() | st.sampled_from([0.0407123, 0.2503217]),
)
def test_fluidity_is_what_the_algorithm_says(
    gaps_ms: list[list[int]], ttft_s: float | None, tpot_s: float | None
) -> None:
    slo = Slo(ttft_s=ttft_s, tpot_s=tpot_s)
    arrivals_s = np.arange(len(gaps_ms), dtype=float)
    times_s = [(arrival + np.cumsum(gaps) / 1000).tolist() for arrival, gaps in zip(arrivals_s, gaps_ms, strict=True)]
    counts = np.array([len(times) for times in times_s])
    found = fluidity_fractions(np.array([t for times in times_s for t in times]), counts, arrivals_s, slo)
    expected = [fluidity(times, arrival, slo) for times, arrival in zip(times_s, arrivals_s, strict=True)]
    assert [None if np.isnan(one) else pytest.approx(one) for one in found] == expected


def test_early_tokens_pay_for_a_stall_and_a_late_one_counts_all_that_it_missed() -> None:
    slo = Slo(ttft_s=1.0, tpot_s=0.1)
    # The first comes 0.6 s early; the stall of 0.65 s before the third fits into that.
    early = [0.4, 0.45, 1.1, 1.15]
    # Due at 1.0; at 1.35 it has missed 1.0, 1.1, 1.2 and 1.3. The next is due 0.1 s later.
    late = [1.35, 1.44, 1.56]
    counts, arrivals = np.array([4, 3]), np.zeros(2)
    found = fluidity_fractions(np.array(early + late), counts, arrivals, slo)
    assert found.tolist() == pytest.approx([1.0, 1 - 5 / 6])
