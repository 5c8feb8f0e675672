"""Capacity: the border between rates that meet the limits and rates that do not, found on real runs and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.capacity import Bisection, CapacitySettings, plan_capacity
from experiments.errors import CommandError

Cli = Callable[..., int]
# Steps of a hundredth of a second, one request at a time: what it carries is known within its chance.
LOAD = (
    *("experiment=null", "execution=simulated", "execution.num_threads=null", "step_time=constant"),
    *("workload._target_=experiments.workloads.poisson.Poisson", "workload.concurrency=null"),
    *(
        "capacity.rate_key='+workload.request_rate_rps'",
        "workload.num_requests=80",
        "num_warmup_requests=0",
        "scheduler.max_num_seqs=1,2",
    ),
    *(
        "slo=none",
        "slo.ttft_s=0.3",
        "capacity.start_rate_rps=4",
        "capacity.target_attainment=0.9",
        "capacity.relative_tolerance=0.4",
    ),
)


def _make_settings(**given: Any) -> CapacitySettings:
    usual = {"rate_key": "workload.request_rate_rps", "target_attainment": 0.99, "start_rate_rps": 1.0}
    return CapacitySettings(**{**usual, "relative_tolerance": 0.02, "max_tries": 60, **given})


@settings(max_examples=100, deadline=None)
@given(
    border=st.floats(1e-3, 1e5),
    start=st.sampled_from([0.01, 1.0, 37.0]),
    tolerance=st.sampled_from([0.001, 0.02, 0.5]),
)
def test_bisection_closes_in_on_the_border_from_anywhere(border: float, start: float, tolerance: float) -> None:
    bisection = Bisection(_make_settings(start_rate_rps=start, relative_tolerance=tolerance))
    tried = []
    while (rate_rps := bisection.next_rps()) is not None:
        tried.append(rate_rps)
        bisection.tell(rate_rps, rate_rps <= border)
    assert len(set(tried)) == len(tried) < 60 and bisection.is_known
    met, failed = bisection.met_rps, bisection.failed_rps
    assert met is not None and failed is not None
    assert met <= border < failed <= met * (1 + tolerance) * (1 + 1e-9)
    # Doubling or halving to reach it, halving to narrow it down.
    assert all(later in (earlier * 2, earlier / 2) for earlier, later in zip(tried[:2], tried[1:2], strict=False))


def test_tries_are_not_without_end() -> None:
    bisection = Bisection(_make_settings(max_tries=5))
    for expected in (1.0, 2.0, 4.0, 8.0, 16.0):
        assert bisection.next_rps() == expected
        bisection.tell(expected, True)
    assert bisection.next_rps() is None and not bisection.is_known


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("capacity.target_attainment=0", "capacity.target_attainment=0: must be above 0, and 1 or less"),
        ("capacity.target_attainment=99", "capacity.target_attainment=99: must be above 0, and 1 or less"),
        ("capacity.start_rate_rps=-1", "capacity.start_rate_rps=-1: must be above 0"),
        ("capacity.relative_tolerance=1e-6", "capacity.relative_tolerance=1e-06: must be 0.001 or more"),
        ("capacity.max_tries=0", "capacity.max_tries=0: must be a whole number, 1 or more"),
        ("capacity.start_rate_rps=1,2", "one setting of each of its own keys"),
        ("workload.request_rate_rps=1,2", "workload.request_rate_rps: is what capacity looks for"),
        ("slo=none", "slo=none: has no limits to meet; choose one"),
        ("workload=shared_prefix", "a closed loop has no rate"),
        ("experiment=quickstart,ablation", "capacity has one experiment"),
    ],
)
def test_a_capacity_that_makes_no_sense_is_one_line(override: str, says: str) -> None:
    usual = ("experiment=null", "workload=poisson", "slo=interactive")
    key = override.partition("=")[0]
    with pytest.raises(CommandError) as caught:
        plan_capacity([*(o for o in usual if not o.startswith(f"{key}=")), override])
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_point_that_carries_more_has_more_capacity_and_a_second_search_runs_nothing(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("capacity", *LOAD) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("capacity ")]
    assert [line.split(":")[0] for line in printed] == [f"capacity scheduler.max_num_seqs={n}" for n in (1, 2)]
    table = pd.read_parquet(tmp_path / "run" / "capacity" / "capacity.parquet")
    runs = pd.read_parquet(tmp_path / "run" / "runs")
    assert len(runs) == len(table) and set(table["point_id"]) == set(runs["point_id"])
    assert runs["simulated"].all()
    found = table[table["is_capacity"]].set_index("cfg.scheduler.max_num_seqs")
    assert found.index.tolist() == [1, 2]
    # One at a time, 7 steps a request on the mean carry 14 a second; no more can be within the limits.
    assert 2 < found["rate_rps"][1] < 14 and found["rate_rps"][2] > 1.2 * found["rate_rps"][1]
    for seats, tries in table.groupby("cfg.scheduler.max_num_seqs"):
        assert tries["rate_rps"].iloc[0] == 4.0
        assert (tries["meets_target"] == (tries["slo_attainment_fraction"] >= 0.9)).all()
        best = found["rate_rps"][seats]
        assert tries[tries["meets_target"]]["rate_rps"].max() == best
        assert tries[~tries["meets_target"]]["rate_rps"].min() <= 1.4 * best

    started = dict(zip(runs["run_id"], runs["started_at"], strict=True))
    assert cli("capacity", *LOAD) == 0
    again = pd.read_parquet(tmp_path / "run" / "runs")
    assert dict(zip(again["run_id"], again["started_at"], strict=True)) == started
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "capacity" / "capacity.parquet"), table)


def test_a_point_that_fails_stays_unknown_and_the_others_do_not(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [o for o in LOAD if not o.startswith("scheduler.max_num_seqs")]
    broken = (
        "scheduler._target_=components.Raises,minivllm.scheduler.fcfs.FCFS",
        "capacity.max_tries=2",
        "scheduler.max_num_seqs=8",
    )
    assert cli("capacity", *few, *broken) == 1
    printed = capsys.readouterr().out
    assert "components.Raises: unknown: a run failed" in printed
    assert "FCFS: 8 rps or more, the highest that was tried" in printed
    table = pd.read_parquet(tmp_path / "run" / "capacity" / "capacity.parquet")
    assert table["rate_rps"].tolist() == [4.0, 8.0] and not table["is_capacity"].any()
