"""Runs on machines that share only the folder: one at a time does a run, and what it did is known by its row."""

from __future__ import annotations

import dataclasses
import fcntl
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import tables
from experiments.errors import ResultsError
from experiments.launchers.base import Site, Task
from experiments.launchers.elsewhere import Errand, Sender, at_most
from experiments.plan import plan_sweep
from experiments.results import ResultsFolder


def _make_site(folder: Path, cool_down_s: float = 0.0) -> Site:
    return Site(folder=folder, timeout_s=60, cool_down_s=cool_down_s, measure_peaks=False)


def _make_tasks(tiny: Sequence[str], *overrides: str) -> list[Task]:
    jobs = plan_sweep(["experiment=null", *tiny, *overrides]).jobs
    types = tables.column_types(job.config for job in jobs)
    rows: list[dict[str, Any]] = [
        {"sweep": "s", "run_id": job.run_id, "point_id": job.point_id, "repeat": job.repeat} for job in jobs
    ]
    return [Task(job=job, row=row, column_types=types) for job, row in zip(jobs, rows, strict=True)]


@pytest.fixture
def components_on_path(monkeypatch: pytest.MonkeyPatch, components_folder: Path) -> None:
    monkeypatch.syspath_prepend(str(components_folder))


@settings(max_examples=50, deadline=None)
@given(
    most=st.integers(1, 4),
    found=st.integers(0, 6),
    total=st.integers(0, 9),
    ends=st.lists(st.sets(st.integers(0, 5)), max_size=12),
)
def test_no_more_than_allowed_are_ever_in_flight_and_all_end_once(
    most: int, found: int, total: int, ends: list[set[int]]
) -> None:
    seen: list[int] = []
    started = iter(range(found, found + total))

    def ended(flying: Sequence[int]) -> list[int]:
        # More than allowed only where more were in flight to begin with, and then nothing starts.
        assert len(flying) <= max(most, found)
        assert len(flying) <= most or set(flying) <= set(range(found))
        seen.append(len(flying))
        places = ends.pop() if ends else {0}
        return [one for place, one in enumerate(flying) if place in places]

    assert sorted(at_most(most, started, ended, range(found))) == list(range(found + total))
    assert not total or max(seen) >= min(most, total)


def test_the_next_starts_only_when_there_is_room() -> None:
    begun: list[int] = []
    kept = at_most(2, (begun.append(n) or n for n in range(9)), lambda flying: flying[:1])
    assert [next(kept), begun[:]] == [0, [0, 1]]
    assert [next(kept), begun[:]] == [1, [0, 1, 2]]


@pytest.mark.slow
@pytest.mark.usefixtures("components_on_path")
def test_one_machine_at_a_time_does_a_run_and_the_next_takes_its_row(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (task,) = _make_tasks(tiny, "scheduler._target_=components.Sloth")
    with ResultsFolder(tmp_path).held():
        sender = Sender(_make_site(tmp_path))

        def rows_of_three_at_once(errand: Errand) -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = []
            threads = [threading.Thread(target=lambda: rows.extend(errand.run().values())) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return rows

        rows = rows_of_three_at_once(sender.errand([task]))
        assert [row["status"] for row in rows] == ["ok"] * 3
        assert len({row["started_at"] for row in rows}) == 1
        assert capsys.readouterr().out.count("started") == 1
        # Where each is to run it again, they run one after the other.
        again = rows_of_three_at_once(sender.errand([dataclasses.replace(task, again=True)]))
        times = sorted((row["started_at"].timestamp(), row["wall_s"]) for row in again)
        assert all(start + wall <= later for (start, wall), (later, _) in zip(times, times[1:], strict=False))
        assert len({start for start, _ in times}) == 3
    assert not any((tmp_path / "running").iterdir())


@pytest.mark.slow
def test_an_errand_rests_before_each_of_its_runs(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = _make_tasks(tiny, "seed=0,1")
    with ResultsFolder(tmp_path).held():
        rows = Sender(_make_site(tmp_path, cool_down_s=0.01)).errand(tasks).run()
    # What ran here before the errand, nobody knows.
    said = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert said == ["cooling down", "started"] * 2
    assert [row["status"] for row in rows.values()] == ["ok"] * 2


def test_a_machine_that_sees_another_folder_says_so_and_writes_nothing(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    tasks = _make_tasks(tiny)
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        with ResultsFolder(folder).held():
            errand = Sender(_make_site(folder)).errand(tasks)
    before = sorted(there.rglob("*"))
    for folder in (here, tmp_path / "nowhere"):
        with pytest.raises(ResultsError, match="not the driver's folder; all machines must see it under this path"):
            dataclasses.replace(errand, site=_make_site(folder)).run()
    assert not (tmp_path / "nowhere").exists() and sorted(there.rglob("*")) == before
    assert not any((here / "configs").iterdir())


def test_a_run_that_somebody_is_at_is_known_and_locks_of_the_dead_are_removed(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path).held():
        sender = Sender(_make_site(tmp_path))
        assert sender.running() == frozenset()
        for name in ("dead", "alive"):
            (tmp_path / "running").mkdir(exist_ok=True)
            (tmp_path / "running" / name).touch()
        with (tmp_path / "running" / "alive").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert sender.running() == {"alive"}
            assert [path.name for path in (tmp_path / "running").iterdir()] == ["alive"]
        assert sender.running() == frozenset()


@pytest.mark.parametrize("is_sent", [True, False], ids=["sent by us", "sent by an earlier launch"])
def test_a_task_without_word_has_the_row_that_it_left_and_no_earlier_one(
    tmp_path: Path, tiny: tuple[str, ...], is_sent: bool
) -> None:
    (task,) = _make_tasks(tiny)
    run_id = task.job.run_id
    results = ResultsFolder(tmp_path)

    def leave(status: str, second: int) -> None:
        began = datetime(2026, 1, 1, second=second, tzinfo=timezone.utc)
        row = {**task.row, "status": status, "started_at": began, "wall_s": 1.0}
        table = tables.runs_table(row, task.job.config, task.column_types)
        for name in ("requests", "steps"):
            tables.write_table(results.table_path(name, run_id), tables.rows_table(name, run_id, []))
        tables.write_table(results.table_path("runs", run_id), table)

    with results.held():
        sender = Sender(_make_site(tmp_path))
        leave("error", 1)
        if is_sent:
            sender.errand([task])
        lost = sender.row_without_word(task, error_type="WorkerDied", why="it died")
        assert (lost["status"], lost["error_type"], lost["error_message"]) == ("crashed", "WorkerDied", "it died")
        written = results.row(run_id)
        assert written is not None and written["error_message"] == "it died"
        assert not results.table_path("steps", run_id).exists(), "tables of the earlier try are not its"
        if is_sent:
            sender.errand([task])
        leave("ok", 2)
        found = sender.row_without_word(task, error_type="WorkerDied", why="it died")
        assert found["status"] == "ok" and results.complete_row(run_id) is not None
        if is_sent:
            # Run again on purpose: the complete row is the earlier try's.
            sender.errand([dataclasses.replace(task, again=True)])
            assert sender.row_without_word(task, error_type="WorkerDied", why="again")["error_message"] == "again"
