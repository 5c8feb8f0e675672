"""A point that grows slower run by run, beside one that does not: the report names the one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., int]


@pytest.mark.slow
def test_a_point_that_alone_grows_slower_is_named_in_the_report(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Each run of the one sleeps 1.25 times as long as the run before it: far more than a busy machine adds.
    one_slower = ("scheduler._target_=components.Paced", "+scheduler.step_s=0.004", "+scheduler.drift=0,0.25")
    sweep = ("sweep", "experiment=null", "repeats=6", *one_slower, f"+scheduler.notes={tmp_path}/notes")
    assert cli(*sweep) == 0
    for shown in (capsys.readouterr().out, (tmp_path / "run" / "report.md").read_text()):
        (line,) = [line for line in shown.splitlines() if "Drift" in line]
        assert "Drift of one point: drift=0.25 changed from its first repeat to its last" in line
        assert "Output -8" in line or "Output -9" in line
