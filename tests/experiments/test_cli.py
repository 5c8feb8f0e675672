"""What the command line answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import doctor, environment
from experiments.cli import main

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
