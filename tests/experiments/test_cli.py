"""What the command line answers, and how W&B mirrors a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments import doctor, environment
from experiments.cli import main
from experiments.tracking.wandb import WandbTracker

Cli = Callable[..., int]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("run", "sweep", "report", "doctor"))


def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("sweep", "cache.blok_size=8,16") == 2
    assert capsys.readouterr().err == (
        "minivllm: cache.blok_size=8: no such key; did you mean cache.block_size?; "
        "+cache.blok_size=... hands it to the class\n"
    )
    assert not any(tmp_path.iterdir())


def test_a_dry_run_lists_the_points_and_runs_none(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("sweep", "--dry-run", "experiment=null", "cache.block_size=3,4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "must be a power of two" in lines[0]
    assert not any(tmp_path.iterdir())


def test_doctor_says_what_runs_and_why_the_rest_does_not() -> None:
    found = {finding.what: finding for finding in doctor.findings()}
    assert found["torch"].works and found["torch"].detail == environment.version("torch")
    assert found["python"].works and found["conf"].works
    assert all(finding.detail for finding in found.values())


def test_the_environment_names_no_place() -> None:
    host = environment.host() | environment.moment()
    assert host["env.python"] and host["env.cpu_count"] >= 1
    assert not [value for value in host.values() if isinstance(value, str) and value.startswith("/")]


def test_every_run_has_one_offline_mirror_even_after_a_restart(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ("sweep", "experiment=null", "seed=0,1")
    assert cli(*sweep) == 0
    # Taken up with tracking on: what ran without a mirror gets one, and only once.
    for _ in range(2):
        assert cli(*sweep, "tracking=wandb") == 0
        mirrors = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
        assert len(mirrors) == 2
    runs = pd.read_parquet(tmp_path / "run" / "runs")
    marks = {path.name for path in (tmp_path / "run" / "wandb" / "mirrored").iterdir()}
    assert marks == {f"{run_id}.ok" for run_id in runs["run_id"]}
    content = b"".join(path.read_bytes() for path in mirrors)
    assert b"num_running" in content and b"output_throughput_tps" in content and b"cache.block_size" in content
    assert "wandb:" not in capsys.readouterr().out


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
