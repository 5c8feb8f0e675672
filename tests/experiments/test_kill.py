"""Sweeps that are interrupted: finished points stay whole, nothing is run twice, and nobody is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from experiments import tables

Start = Callable[..., "subprocess.Popen[str]"]
# 4 points of 3 to 5 repeats, of about half a second each. How many repeats a point needs is decided by a metric that
# does not depend on the clock, so that two sweeps of the same must decide the same.
SWEEP = (
    "scheduler._target_=components.Sloth",
    "cache.block_size=4,8",
    "scheduler.max_num_seqs=1,2",
    "repeats=3",
    "repeat_until.metric=kv_utilization_mean_fraction",
    "repeat_until.relative_half_width=0.28",
    "repeat_until.max_repeats=5",
)
NUM_RUNS = 16


def _complete(folder: Path) -> dict[str, object]:
    """Run id -> when it started, of the runs that are ok on the disk at this moment."""
    rows = (tables.read_table(path).to_pylist()[0] for path in (folder / "runs").glob("*.parquet"))
    return {row["run_id"]: row["started_at"] for row in rows if row["status"] == "ok"}


def _wait_for(condition: Callable[[], bool], what: str, limit_s: float = 300) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {limit_s:.0f} s for {what}"
        time.sleep(0.01)


def _end(process: subprocess.Popen[str], number: signal.Signals) -> str:
    os.killpg(process.pid, number)
    return process.communicate(timeout=60)[0]


def _family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


@pytest.mark.slow
def test_a_sweep_killed_five_times_ends_like_an_unbroken_one(
    start: Start, tmp_path: Path, what_must_not_move: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    unbroken = start(tmp_path / "unbroken", *SWEEP)
    output, _ = unbroken.communicate(timeout=600)
    assert unbroken.returncode == 0, output

    chance = random.Random(0)
    folder = tmp_path / "killed" / "run"
    seen: dict[str, object] = {}
    for _ in range(5):
        driver = start(tmp_path / "killed", *SWEEP)
        # Let it get into its first new point, then strike at any moment of that one or the next.
        number = len(list(folder.glob("configs/*.yaml")))
        _wait_for(lambda n=number: len(list(folder.glob("configs/*.yaml"))) > n, "the next point to start")
        time.sleep(chance.uniform(0, 1.5))
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=60)
        now = _complete(folder)
        assert seen.items() <= now.items(), "a finished point was lost or run again"
        seen = now
    assert 0 < len(seen) < NUM_RUNS, "the kills came too early or too late to show anything"
    last = start(tmp_path / "killed", *SWEEP)
    output, _ = last.communicate(timeout=600)
    assert last.returncode == 0, output
    final = _complete(folder)
    assert seen.items() <= final.items()
    assert len(final) == NUM_RUNS
    runs = pd.read_parquet(folder / "runs")
    assert sorted(runs.groupby("point_id").size()) == [3, 4, 4, 5]
    assert sorted(runs["order_index"]) == list(range(NUM_RUNS))

    for table in ("runs", "requests", "steps"):
        broken, whole = (pd.read_parquet(tmp_path / side / "run" / table) for side in ("killed", "unbroken"))
        pd.testing.assert_frame_equal(what_must_not_move(broken), what_must_not_move(whole))
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_nobody_outlives_a_killed_driver(start: Start, tmp_path: Path) -> None:
    driver = start(tmp_path, "scheduler._target_=components.Hangs")
    log = tmp_path / "run" / "logs"
    _wait_for(lambda: log.exists() and any(log.iterdir()), "the run to start")
    family = _family(driver)
    assert len(family) >= 2, "the fork server and the run"
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    gone, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert len(gone) == len(family)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_says_so(start: Start, tmp_path: Path) -> None:
    driver = start(tmp_path, "scheduler._target_=minivllm.scheduler.fcfs.FCFS,components.Hangs")
    _wait_for(lambda: len(list((tmp_path / "run").glob("configs/*.yaml"))) == 2, "the second point to start")
    family = _family(driver)
    output = _end(driver, signal.SIGINT)
    assert driver.returncode == 130
    assert "interrupted; finished points are kept" in output and "Traceback" not in output
    assert len(_complete(tmp_path / "run")) == 1
    assert not psutil.wait_procs(family, timeout=20)[1]
