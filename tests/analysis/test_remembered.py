from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis
from analysis import remembered

NUM_RUNS = remembered.FEWEST_FILES + 6


@pytest.fixture
def folder(tmp_path: Path, make_sweep: Callable[..., Path]) -> Path:
    """Points of two schemas, by turns; all files as if written a minute ago."""
    points = [{"size": i} if i % 2 else {"name": f"n{i}", "size": i / 2} for i in range(NUM_RUNS)]
    folder = make_sweep(tmp_path / "sweep", points, details=False)
    for path in (folder / "runs").iterdir():
        _age(path)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read instead of remembered."""
    names: list[str] = []

    def spy(files: list[Path]) -> Any:
        names.extend(path.name for path in files)
        return read_files(files)

    read_files = remembered.read_files
    monkeypatch.setattr(remembered, "read_files", spy)
    # Nothing here waits for a clock: what was written is settled as soon as its time says so.
    monkeypatch.setattr(remembered, "_SETTLED_NS", -10_000_000_000)
    return names


def _age(path: Path) -> None:
    os.utime(path, ns=(10**18, 10**18))


def _change(path: Path, **values: Any) -> None:
    pq.write_table(pa.Table.from_pylist([pq.read_table(path).to_pylist()[0] | values]), path)


def _copy(folder: Path) -> Path:
    return folder / ".cache" / "runs.arrow"


def test_a_second_load_opens_no_file_of_runs_and_gives_the_same(folder: Path, opened: list[str]) -> None:
    first = analysis.load(folder)
    assert len(opened) == NUM_RUNS
    opened.clear()
    again = analysis.load(folder)
    assert opened == []
    pd.testing.assert_frame_equal(first.runs, again.runs)
    assert again.runs["cfg.size"].tolist() == [i if i % 2 else i / 2 for i in range(NUM_RUNS)]


@pytest.mark.parametrize("how", ["rewritten", "touched", "replaced", "garbage"])
def test_only_a_file_that_was_changed_is_read_again(folder: Path, opened: list[str], how: str) -> None:
    analysis.load(folder)
    opened.clear()
    path = folder / "runs" / f"{5:012x}-r0.parquet"
    if how == "rewritten":
        # As long as before, and as old: the time at which it was changed tells.
        before = path.read_bytes()
        path.write_bytes(before)
        _age(path)
    elif how == "touched":
        path.touch()
    elif how == "replaced":
        _change(path, output_throughput_tps=-1.0)
    else:
        path.write_bytes(b"no parquet at all")
    sweep = analysis.load(folder)
    assert opened == [path.name]
    if how == "replaced":
        assert sweep.runs.loc[5, "output_throughput_tps"] == -1
    assert len(sweep.warnings) == (how == "garbage")
    assert len(sweep.runs) == NUM_RUNS - (how == "garbage")


def test_runs_that_came_or_went_since_are_seen(
    folder: Path, opened: list[str], make_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    analysis.load(folder)
    opened.clear()
    gone = folder / "runs" / f"{3:012x}-r0.parquet"
    gone.unlink()
    shutil.copy(folder / "runs" / f"{4:012x}-r0.parquet", folder / "runs" / "0000zzz.parquet")
    _change(folder / "runs" / "0000zzz.parquet", run_id="new", order_index=3)
    sweep = analysis.load(folder)
    assert opened == ["0000zzz.parquet"]
    assert len(sweep.runs) == NUM_RUNS
    assert sweep.runs["run_id"].tolist()[3] == "new" and gone.stem not in set(sweep.runs["run_id"])


def test_a_file_that_cannot_be_read_is_said_every_time(folder: Path, opened: list[str]) -> None:
    (folder / "runs" / f"{7:012x}-r0.parquet").write_bytes(b"half a file")
    for _ in range(3):
        assert len(analysis.load(folder).warnings) == 1


def test_what_was_written_a_moment_ago_is_not_trusted(folder: Path, opened: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(remembered, "_SETTLED_NS", 2_000_000_000)
    # Their inodes were changed just now, whatever their times say.
    for _ in range(2):
        opened.clear()
        analysis.load(folder)
        assert len(opened) == NUM_RUNS


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "other format"])
def test_a_broken_copy_is_made_anew(folder: Path, opened: list[str], damage: str) -> None:
    whole = analysis.load(folder).runs
    copy = _copy(folder)
    data = copy.read_bytes()
    copy.write_bytes(
        {"empty": b"", "garbage": b"x" * 999, "truncated": data[: len(data) // 2], "other format": b"y" + data}[damage]
    )
    for _ in range(2):
        opened.clear()
        pd.testing.assert_frame_equal(analysis.load(folder).runs, whole)
    assert opened == []


def test_small_folders_are_left_as_they_are(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}])
    analysis.load(folder)
    assert not _copy(folder).parent.exists()


def test_a_folder_that_cannot_be_written_is_read_all_the_same(folder: Path) -> None:
    (folder / ".cache").write_text("in the way")
    assert len(analysis.load(folder).runs) == NUM_RUNS
