"""One sweep in which almost everything goes wrong: each failure is a row that says why, and the others complete."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from experiments.cli import main

POLICIES = (
    "minivllm.scheduler.fcfs.FCFS",
    *(f"components.{n}" for n in ["Raises", "Segfaults", "KilledForMemory", "Exits", "Hangs"]),
)


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...], components_folder: Path
) -> Iterator[tuple[int, str, Path, pd.DataFrame]]:
    """(exit code, what was printed, folder, rows by policy and block size)."""
    folder = tmp_path_factory.mktemp("failures")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "path", [*sys.path, str(components_folder)])
        code = main(
            [
                "sweep",
                "experiment=null",
                *tiny,
                f"scheduler._target_={','.join(POLICIES)}",
                # 3 is no block size.
                "cache.block_size=4,3",
                f"sweep.folder={folder}",
                "sweep.timeout_s=15",
            ]
        )
    runs = pd.read_parquet(folder / "run" / "runs")
    yield (
        code,
        printed.getvalue(),
        folder / "run",
        runs.set_index(["cfg.scheduler", "cfg.cache.block_size"]).sort_index(),
    )


EXPECTED = {
    "minivllm.scheduler.fcfs.FCFS": ("ok", None, None),
    "components.Raises": ("error", "RuntimeError", "the third step is one too many"),
    "components.Segfaults": ("crashed", "SIGSEGV", "died of signal 11 (SIGSEGV)"),
    "components.KilledForMemory": ("crashed", "SIGKILL", "died of signal 9 (SIGKILL): most likely out of memory"),
    "components.Exits": ("crashed", "Exit", "left with exit code 7 and no result"),
    "components.Hangs": ("timeout", "Timeout", "no result after 15 s (sweep.timeout_s)"),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_each_end_is_a_row_with_status_and_reason(policy: str, swept: tuple[int, str, Path, pd.DataFrame]) -> None:
    row = swept[3].loc[(policy, 4)]
    values = tuple(None if pd.isna(v) else v for v in row[["status", "error_type", "error_message"]])
    assert values == EXPECTED[policy]
    assert row["env.python"] and row["wall_s"] > 0


def test_an_impossible_config_is_a_row_that_never_ran(swept: tuple[int, str, Path, pd.DataFrame]) -> None:
    invalid = swept[3].xs(3, level="cfg.cache.block_size")
    assert set(invalid["status"]) == {"invalid"}
    assert set(invalid["error_message"]) == {"cache.block_size=3: must be a power of two, 1 or more"}
    assert len(invalid) == len(POLICIES)


def test_the_exit_code_says_that_not_all_succeeded(swept: tuple[int, str, Path, pd.DataFrame]) -> None:
    assert swept[0] == 1


def test_only_complete_runs_have_tables(swept: tuple[int, str, Path, pd.DataFrame]) -> None:
    _, _, folder, runs = swept
    complete = set(runs.loc[runs["status"] == "ok", "run_id"])
    for table in ("requests", "steps"):
        assert {path.stem for path in (folder / table).iterdir()} == complete
    assert {path.stem for path in (folder / "configs").iterdir()} == set(runs["run_id"])


def test_the_log_keeps_what_a_failed_run_said(swept: tuple[int, str, Path, pd.DataFrame]) -> None:
    _, _, folder, runs = swept
    log = {policy: folder / "logs" / f"{runs.loc[(policy, 4), 'run_id']}.log" for policy in POLICIES}
    raised = log["components.Raises"].read_text()
    assert "about to fail" in raised and "Traceback" in raised
    assert "Segmentation fault" in log["components.Segfaults"].read_text()
    assert not log["minivllm.scheduler.fcfs.FCFS"].exists()


def test_one_quiet_line_a_point_when_piped(swept: tuple[int, str, Path, pd.DataFrame]) -> None:
    printed = swept[1]
    lines = [line for line in printed.splitlines() if line.startswith("[")]
    assert len(lines) == 2 * len(POLICIES)
    assert "\x1b" not in printed and "Traceback" not in printed
