from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis
from analysis.columns import TABLES
from analysis.load import concatenate


def test_all_tables_come_back_as_dataframes_with_the_contract_columns(ablation: analysis.Sweep) -> None:
    for name, columns in TABLES.items():
        table = getattr(ablation, name)
        assert isinstance(table, pd.DataFrame)
        assert {*columns, "sweep"} <= set(table.columns)
    assert (len(ablation.runs), len(ablation.requests), len(ablation.steps)) == (6, 5 * 12, 5 * 40)
    assert ablation.runs["order_index"].tolist() == [0, 1, 2, 3, 4, 5]
    assert ablation.quality.empty
    assert ablation.warnings == ()


def test_configs_are_found_by_run(ablation: analysis.Sweep) -> None:
    assert ablation.configs["000000000000-r0"].read_text() == "seed: 0\n"
    assert len(ablation.configs) == 6


def test_columns_are_the_union_over_files(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [{"scheduler.alpha": 1, "size": 2}, {"cache.ways": "four", "size": 0.5}, {"size": 3}]
    runs = analysis.load(make_sweep(tmp_path / "sweep", points)).runs
    assert runs["cfg.scheduler.alpha"].isna().tolist() == [False, True, True]
    assert runs["cfg.cache.ways"].tolist()[1] == "four"
    # An integer and a float go together as floats.
    assert runs["cfg.size"].tolist() == [2.0, 0.5, 3.0]


def test_a_column_of_mixed_types_becomes_text(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [{"option": True}, {"option": 4}, {"option": "auto"}, {"option": [1, 2]}, {"option": None}]
    values = analysis.load(make_sweep(tmp_path / "sweep", points)).runs["cfg.option"].tolist()
    assert values[:4] == ["true", "4", "auto", "[1, 2]"]
    assert pd.isna(values[4])


def test_an_integer_that_no_float_holds_beside_floats_becomes_text() -> None:
    parts = [pa.table({"run_id": ["a"], "seed": [2**60 + 1]}), pa.table({"run_id": ["b"], "seed": [0.5]})]
    assert concatenate(parts)["seed"].to_pylist() == [str(2**60 + 1), "0.5"]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "flipped"])
def test_a_corrupt_file_is_one_warning_and_nothing_else_is_lost(
    tmp_path: Path, make_sweep: Callable[..., Path], damage: str
) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}])
    victim = folder / "steps" / "000000000001-r0.parquet"
    whole = victim.read_bytes()
    middle = len(whole) // 3
    victim.write_bytes(
        {
            "truncated": whole[:-20],
            "garbage": b"no parquet at all",
            "empty": b"",
            "flipped": whole[:4] + bytes(255 - byte for byte in whole[4:middle]) + whole[middle:],
        }[damage]
    )
    sweep = analysis.load(folder)
    assert len(sweep.warnings) == 1
    assert str(victim) in sweep.warnings[0] and "\n" not in sweep.warnings[0]
    assert (len(sweep.runs), len(sweep.requests), len(sweep.steps)) == (2, 24, 40)


def test_a_run_whose_own_row_is_corrupt_is_named_and_its_requests_are_not_used(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}])
    (folder / "runs" / "000000000001-r0.parquet").write_bytes(b"")
    sweep = analysis.load(folder)
    assert [line.split(":")[0] for line in sweep.warnings[1:]] == ["requests", "steps"]
    assert set(analysis.attach(sweep, sweep.requests)["run_id"]) == {"000000000000-r0"}


def test_a_parquet_file_of_something_else_is_left_out(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}])
    pq.write_table(pa.table({"x": [1]}), folder / "runs" / "other.parquet")
    sweep = analysis.load(folder)
    assert len(sweep.runs) == 1
    assert "other.parquet: has no column run_id" in sweep.warnings[0]


def test_temporary_files_of_a_writer_are_ignored(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}])
    for name in (".0.parquet", "0.parquet.tmp", ".0.parquet.tmp"):
        (folder / "runs" / name).write_bytes(b"half a file")
    sweep = analysis.load(folder)
    assert (len(sweep.runs), sweep.warnings) == (1, ())


def test_a_folder_without_tables_is_one_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no tables") as error:
        analysis.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_sweeps_is_answered_with_their_names(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    make_sweep(tmp_path / "quickstart", [{"size": 1}])
    with pytest.raises(ValueError, match="name one: .*quickstart"):
        analysis.load(tmp_path)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        analysis.load(tmp_path / "nowhere")


def test_several_sweeps_with_the_same_points_stay_apart(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    first = make_sweep(tmp_path / "monday", [{"size": 1}, {"size": 2}])
    second = make_sweep(tmp_path / "tuesday", [{"size": 1}, {"size": 2}])
    sweep = analysis.load([first, second])
    assert sweep.warnings == ()
    assert sorted(analysis.labels(sweep)) == ["monday: size=1", "monday: size=2", "tuesday: size=1", "tuesday: size=2"]
    assert len(analysis.attach(sweep, sweep.requests)) == len(sweep.requests) == 48


def test_several_schema_versions_are_a_warning(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}])
    path = folder / "runs" / "000000000001-r0.parquet"
    row = pq.read_table(path).to_pylist()[0] | {"schema_version": 2}
    pq.write_table(pa.Table.from_pylist([row]), path)
    assert analysis.load(folder).warnings == ("runs were written under several schema versions: 1, 2",)


def test_a_pattern_names_all_sweeps_that_fit(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    for name in ("night-2", "night-1", "day"):
        make_sweep(tmp_path / name, [{"size": 1}])
    (tmp_path / "night-notes").mkdir()
    (tmp_path / "night-log.txt").write_text("no folder\n")
    found = analysis.load(tmp_path / "night-*")
    assert [folder.name for folder in found.folders] == ["night-1", "night-2"]
    both = analysis.load([str(tmp_path / "night-*"), tmp_path / "day", tmp_path / "night-1"])
    assert [folder.name for folder in both.folders] == ["night-1", "night-2", "day"]


def test_a_pattern_that_nothing_fits_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"night-\*: no folder of tables fits this pattern"):
        analysis.load(tmp_path / "night-*")


def test_a_folder_whose_name_looks_like_a_pattern_is_itself(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    assert len(analysis.load(make_sweep(tmp_path / "rate[1]", [{"size": 1}])).runs) == 1


def test_rows_are_in_the_order_of_the_files_however_they_are_read(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    folder = make_sweep(tmp_path / "sweep", [{"size": size} for size in range(40)], num_requests=2)
    first, again = (analysis.load(folder).requests for _ in range(2))
    assert first["run_id"].is_monotonic_increasing
    pd.testing.assert_frame_equal(first, again)
