"""Where runs run: several at a time, as jobs of a cluster, or in parts on several machines that are put together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

import analysis
from analysis.caveats import caveats
from experiments.plan import plan_sweep

Cli = Callable[..., int]
Start = Callable[..., "subprocess.Popen[str]"]
JOBLIB = ("launcher=joblib", "launcher.n_jobs=2")
JOBS = ("launcher=submitit", "launcher.executor=local", "launcher.poll_s=0.1", "launcher.max_jobs=2")


def _complete(folder: Path) -> dict[str, object]:
    """Run id -> when it started."""
    if not any((folder / "runs").glob("*.parquet")):
        return {}
    runs = pd.read_parquet(folder / "runs")
    runs = runs[runs["status"] == "ok"]
    return dict(zip(runs["run_id"], runs["started_at"], strict=True))


def _wait_for(condition: Callable[[], bool], what: str, limit_s: float = 120) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {limit_s:.0f} s for {what}"
        time.sleep(0.02)


def test_joblib_runs_two_at_a_time_and_says_what_that_costs(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = "components.Sloth,components.KilledForMemory,components.Exits"
    assert cli("sweep", "experiment=null", f"scheduler._target_={policies}", "repeats=2", *JOBLIB) == 1
    assert "launcher=joblib: up to 2 points at a time share a machine" in capsys.readouterr().out
    sweep = analysis.load(tmp_path / "run")
    runs = sweep.runs.sort_values("started_at")
    ends = runs["started_at"] + pd.to_timedelta(runs["wall_s"], unit="s")
    assert (runs["started_at"].iloc[1:].to_numpy() < ends.iloc[:-1].to_numpy()).any(), "two ran at a time"
    assert sorted(runs["order_index"]) == list(range(6))
    # Two that start in the same moment may change places; no more.
    assert (runs["order_index"].to_numpy() - range(6)).max() <= 1
    assert set(runs["design.launcher"]) == {"joblib"} and set(runs["design.num_at_once"]) == {2}
    # How a child ended is told right, whichever thread starts another one meanwhile.
    ended = runs.groupby("cfg.scheduler")[["status", "error_type"]].agg(lambda found: "+".join(map(str, set(found))))
    assert ended.loc["components.KilledForMemory"].tolist() == ["crashed", "SIGKILL"]
    assert ended.loc["components.Exits"].tolist() == ["crashed", "Exit"]
    said = " ".join(caveats(sweep, analysis.points(sweep)))
    assert "2 of 2 runs ran up to 2 at a time on one machine (launcher joblib)" in said


@pytest.mark.slow
def test_a_joblib_sweep_whose_driver_and_workers_are_killed_loses_nothing(start: Start, tmp_path: Path) -> None:
    # Decided by a metric without a clock, so that what must run is known: see test_kill.py.
    sweep = (
        *("scheduler._target_=components.Sloth", "cache.block_size=4,8", "scheduler.max_num_seqs=2", "repeats=3"),
        *("repeat_until.metric=kv_utilization_mean_fraction", "repeat_until.relative_half_width=0.28"),
        *("repeat_until.max_repeats=5", *JOBLIB),
    )
    folder = tmp_path / "run"
    seen: dict[str, object] = {}
    for attempt in range(2):
        driver = start(tmp_path, *sweep)
        _wait_for(lambda: len(_complete(folder)) >= len(seen) + 2, "two more points")  # noqa: B023
        family = psutil.Process(driver.pid).children(recursive=True)
        if attempt:
            # A worker alone: its point is a row that says so, and runs again in the next launch.
            ran = [child for child in family if os.getpgid(child.pid) == child.pid]
            if ran:
                ran[0].kill()
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=60)
        assert not psutil.wait_procs(family, timeout=20)[1], "somebody outlived the driver"
        now = _complete(folder)
        assert seen.items() <= now.items(), "a finished point was lost or run again"
        seen = now
    last = start(tmp_path, *sweep)
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    final = _complete(folder)
    assert seen.items() <= final.items() and 0 < len(seen) < len(final)
    runs = pd.read_parquet(folder / "runs")
    assert sorted(runs.groupby("point_id").size()) == [4, 5]
    assert runs["order_index"].is_unique
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_ctrl_c_ends_all_workers(start: Start, tmp_path: Path) -> None:
    driver = start(tmp_path, "scheduler._target_=components.Hangs", "seed=0,1,2", *JOBLIB)
    _wait_for(lambda: len(list((tmp_path / "run").glob("logs/*"))) == 2, "two runs to start")
    family = psutil.Process(driver.pid).children(recursive=True)
    os.killpg(driver.pid, signal.SIGINT)
    output = driver.communicate(timeout=60)[0]
    assert driver.returncode == 130
    assert "interrupted; finished points are kept" in output and "Traceback" not in output
    assert not psutil.wait_procs(family, timeout=20)[1]
    # Those that were ended are no results.
    assert not list((tmp_path / "run" / "runs").glob("*.parquet"))


@pytest.mark.slow
def test_jobs_go_on_without_their_driver_and_the_next_one_collects_them(start: Start, tmp_path: Path) -> None:
    sweep = ("scheduler._target_=components.Sloth", "seed=0,1,2", *JOBS, "launcher.points_per_job=2")
    folder = tmp_path / "run"
    driver = start(tmp_path, *sweep)
    _wait_for(lambda: any(folder.glob("configs/*.yaml")), "a job to start")
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    # At once, while the jobs run.
    again = start(tmp_path, *sweep)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    runs = pd.read_parquet(folder / "runs").sort_values("started_at")
    assert runs["status"].tolist() == ["ok"] * 3
    assert sorted(runs["order_index"]) == [0, 1, 2]
    assert set(runs["design.launcher"]) == {"submitit"} and set(runs["design.num_at_once"]) == {2}
    logs = "".join(path.read_text() for path in (folder / "submitit").glob("*_log.out"))
    assert [logs.count(f"{run_id}: started") for run_id in runs["run_id"]] == [1, 1, 1]
    assert not list((folder / "submitit" / "points").iterdir())


@pytest.mark.slow
def test_a_job_that_dies_is_a_row_and_the_other_jobs_go_on(cli: Cli, tmp_path: Path) -> None:
    # The policy ends its job along with its own process.
    assert cli("sweep", "experiment=null", "scheduler._target_=components.KillsItsJob,components.Sloth", *JOBS) == 1
    runs = pd.read_parquet(tmp_path / "run" / "runs").set_index("cfg.scheduler")
    assert runs["status"].to_dict() == {"components.KillsItsJob": "crashed", "components.Sloth": "ok"}
    assert "killed, or out of time" in runs.loc["components.KillsItsJob", "error_message"]


def test_parts_from_two_machines_are_one_sweep(cli: Cli, tmp_path: Path) -> None:
    whole = ("sweep", "experiment=null", "cache.block_size=4,8", "repeats=2")
    for place, part in (("here", "cache.block_size=4"), ("there", "cache.block_size=8")):
        assert cli(*whole[:2], part, "repeats=2", f"sweep.folder={tmp_path / place}") == 0
    merged = tmp_path / "here" / "run"
    shutil.copytree(tmp_path / "there" / "run", merged, dirs_exist_ok=True)
    sweep = analysis.load(merged)
    assert sweep.warnings == ()
    table = sweep.points().sort_values("block_size")
    assert table["block_size"].tolist() == [4, 8] and table["n"].tolist() == [2, 2]
    assert set(sweep.requests["run_id"]) == set(sweep.steps["run_id"]) == set(sweep.runs["run_id"])
    # The whole sweep finds nothing left to do.
    before = _complete(merged)
    assert cli(*whole, f"sweep.folder={tmp_path / 'here'}") == 0
    assert _complete(merged) == before and len(before) == 4


def test_a_launcher_is_no_part_of_a_point() -> None:
    plans = [plan_sweep([f"launcher={name}"]) for name in ("local", "joblib", "submitit", "ray")]
    assert len({plan.jobs[0].point_id for plan in plans}) == 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["launcher=joblib", "launcher.n_jobs=0"], "launcher.n_jobs=0: must be 1 or more"),
        (["launcher=submitit", "launcher.executor=pbs"], "launcher.executor='pbs': must be slurm or local"),
        (["launcher=submitit", "launcher.max_jobs=0"], "launcher.max_jobs=0: must be 1 or more"),
        (["launcher=submitit"], "launcher.executor='slurm': "),
        ([*JOBS, "launcher.parameters={nonsense:1}"], "nonsense"),
        (["launcher.n_jobs=2"], "launcher.n_jobs=2: no such key"),
    ],
)
def test_a_launcher_that_cannot_be_is_one_line(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, overrides: list[str], says: str
) -> None:
    # No cluster here.
    monkeypatch.setenv("PATH", "/nonexistent")
    assert cli("run", *overrides) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
