"""A search that is killed at random moments: nothing is lost, nothing runs twice, and it tries what it would have."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments import search, tables

Cli = Callable[..., int]
ROOT = Path(__file__).resolve().parent.parent.parent
# 16 points of half a second; two repeats each. What is aimed at depends on no clock, so that the same points must be
# chosen again.
SPACE = (
    *("experiment=null", "scheduler._target_=components.Sloth", "cache.block_size=4,8,16,32"),
    *("scheduler.max_num_seqs=range(1,5)", "repeats=2", "search.num_trials=7", "search.batch_size=2"),
    *("search.maximize=[kv_utilization_mean_fraction]", "search.minimize=[kv_fragmentation_mean_fraction]"),
)


def _complete(folder: Path) -> dict[str, object]:
    """Run id -> when it started, of the runs that are ok on the disk at this moment."""
    rows = (tables.read_table(path).to_pylist()[0] for path in (folder / "runs").glob("*.parquet"))
    return {row["run_id"]: row["started_at"] for row in rows if row["status"] == "ok"}


def _started(folder: Path) -> int:
    return len(list(folder.glob("configs/*.yaml")))


def _best(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("best")]


@pytest.mark.slow
def test_a_search_killed_at_random_ends_like_an_unbroken_one(
    cli: Cli,
    tmp_path: Path,
    tiny: tuple[str, ...],
    components_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what_must_not_move: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    told: list[Any] = []
    tell = search._Search._tell
    with monkeypatch.context() as patch:
        patch.setattr(search._Search, "_tell", lambda self, *rest: (told.append(rest), tell(self, *rest)))
        assert cli("search", *SPACE, f"sweep.folder={tmp_path / 'unbroken'}") == 0
    assert len(told) == 7
    expected = _best(capsys.readouterr().out)

    folder = tmp_path / "killed" / "run"
    command = [sys.executable, "-m", "experiments", "search", *tiny, *SPACE, f"sweep.folder={folder.parent}"]
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

    def launched() -> subprocess.Popen[str]:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=components_folder, env=environment, **streams)

    chance = random.Random(0)
    seen: dict[str, object] = {}
    for _ in range(3):
        driver = launched()
        # Let it get into its first new point, then strike at any moment of that one or of choosing the next.
        number, deadline_s = _started(folder), time.monotonic() + 120
        while _started(folder) == number:
            assert driver.poll() is None and time.monotonic() < deadline_s, "waited for the next point to start"
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5))
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=60)
        now = _complete(folder)
        assert seen.items() <= now.items(), "a finished run was lost or run again"
        seen = now
    last = launched()
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output

    final, unbroken = _complete(folder), _complete(tmp_path / "unbroken" / "run")
    assert seen.items() <= final.items() and 0 < len(seen) < len(final)
    assert final.keys() == unbroken.keys()
    assert "7 trials of 16 points" in output and _best(output) == expected
    runs = pd.read_parquet(folder / "runs")
    assert sorted(runs["order_index"]) == list(range(len(final)))
    for table in ("runs", "requests", "steps"):
        broken, whole = (pd.read_parquet(path / table) for path in (folder, tmp_path / "unbroken" / "run"))
        pd.testing.assert_frame_equal(what_must_not_move(broken), what_must_not_move(whole))
    assert not list(folder.rglob("*.tmp"))
