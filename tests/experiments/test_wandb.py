"""How W&B mirrors a sweep: read back from the files that `wandb sync` would send."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from wandb_files import OfflineRun, read_offline_run

from experiments import tables
from experiments.tracking import wandb as tracking
from experiments.tracking.wandb import WandbTracker

Cli = Callable[..., int]


def _mirrors(folder: Path) -> dict[str, OfflineRun]:
    """Offline runs by name; the sweep's own has the sweep's."""
    found = [read_offline_run(path) for path in (folder / "wandb").glob("offline-run-*/run-*.wandb")]
    named = {mirror.run.display_name: mirror for mirror in found}
    assert len(named) == len(found), "a run was mirrored twice"
    return named


def test_nothing_of_a_sweep_is_lost_in_its_mirror_even_after_a_restart(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ("sweep", "experiment=aa", "repeats=1", "speculation=ngram")
    assert cli(*sweep) == 0
    # Taken up with tracking on: what ran without a mirror gets one, and only once.
    for _ in range(2):
        assert cli(*sweep, "tracking=wandb") == 0
    assert "wandb:" not in capsys.readouterr().out
    folder = tmp_path / "aa"
    mirrors = _mirrors(folder)
    runs = pd.read_parquet(folder / "runs")
    assert set(mirrors) == {"aa", *runs["run_id"]}

    for run_id in runs["run_id"]:
        mirror = mirrors[run_id]
        row = tables.read_table(folder / "runs" / f"{run_id}.parquet").to_pylist()[0]
        assert (mirror.run.run_group, mirror.run.job_type, mirror.exit_code) == ("aa", "aa", 0)
        assert {"ok", "aa", row["cfg.label"], "scheduler=fcfs"} <= set(mirror.run.tags)
        # Every column of `runs` is in the config or in the summary, and says the same.
        told = {f"cfg.{key}": value for key, value in mirror.config.items()} | mirror.summary
        for column, value in row.items():
            if value is not None and column not in ("run_id", *tables.BY_POSITION):
                want = value.isoformat() if column == "started_at" else value
                assert told[column] == (pytest.approx(want) if isinstance(want, float) else want), column
        # What is a list there is a number for each position here.
        shares = [row["accepted_by_position"][i] / num for i, num in enumerate(row["evaluated_by_position"]) if num]
        assert shares and [told[f"acceptance/position_{i + 1}"] for i in range(len(shares))] == pytest.approx(shares)
        # Every step, on an axis of its own.
        steps = tables.read_table(folder / "steps" / f"{run_id}.parquet").to_pylist()
        assert [h["steps/step"] for h in mirror.history] == [step["step"] for step in steps]
        assert [h["steps/num_running"] for h in mirror.history] == [step["num_running"] for step in steps]
        assert [m.step_metric for m in mirror.metrics if m.glob_name == "steps/*"] == ["steps/step"]
        assert not [key for key in mirror.summary if key.startswith("steps/")]
        # The files, byte for byte, wait within the folder.
        files = [f"{table}/{run_id}.parquet" for table in ("requests", "runs", "steps")]
        assert sorted(mirror.artifacts[run_id]) == [f"configs/{run_id}.yaml", *files]
        for name, staged in mirror.staged.items():
            assert staged.is_relative_to(folder) and staged.read_bytes() == (folder / name).read_bytes()

    whole = mirrors["aa"]
    assert (whole.run.job_type, whole.run.run_group) == ("sweep", "aa")
    plots = {f"plots/{path.name}" for path in (folder / "plots").iterdir()}
    assert plots
    assert plots | {"report.md"} <= set(whole.artifacts["aa-report"])
    (table,) = (folder / "wandb").glob("offline-run-*/files/media/table/runs*.json")
    shown = json.loads(table.read_text())
    assert set(shown["columns"]) == set(pq.read_schema(next((folder / "runs").glob("*.parquet"))).names)
    assert len(shown["data"]) == 2
    images = {path.stem.rpartition("_")[0] for path in (folder / "wandb").rglob("media/images/plots/*.png")}
    assert {name.rpartition("_")[0] for name in images} == {Path(plot).stem for plot in plots}


def test_a_long_run_is_thinned_out_in_its_history_and_whole_in_its_artifact(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_MAX_ROWS", 5)
    assert cli("run", "tracking=wandb") == 0
    (run_id,) = pd.read_parquet(tmp_path / "run" / "runs")["run_id"]
    mirror = _mirrors(tmp_path / "run")[run_id]
    steps = pd.read_parquet(mirror.staged[f"steps/{run_id}.parquet"])
    assert len(mirror.history) <= 5 < len(steps)
    assert set(h["steps/step"] for h in mirror.history) < set(steps["step"])


def test_a_failed_run_is_a_failed_run(cli: Cli, tmp_path: Path) -> None:
    assert cli("run", "tracking=wandb", "scheduler._target_=components.Raises") == 1
    (run_id,) = pd.read_parquet(tmp_path / "run" / "runs")["run_id"]
    mirror = _mirrors(tmp_path / "run")[run_id]
    assert mirror.exit_code == 1 and "error" in mirror.run.tags
    assert mirror.summary["error_message"] == "the third step is one too many"
    assert mirror.config["scheduler"] == "components.Raises"


def test_a_mirror_that_breaks_is_a_warning_and_the_point_stays(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no mirror today")

    monkeypatch.setattr(WandbTracker, "record", broken)
    assert cli("run", "tracking=wandb") == 0
    assert "its tables are written, its mirror is not: no mirror today" in capsys.readouterr().out
    assert pd.read_parquet(tmp_path / "run" / "runs")["status"].tolist() == ["ok"]


def test_a_wrong_tracking_mode_is_told_before_anything_runs(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("run", "tracking=wandb", "tracking.mode=onlin") == 2
    assert "tracking.mode='onlin': must be offline or online" in capsys.readouterr().err
