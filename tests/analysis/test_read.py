from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import read
from analysis.load import concatenate

_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from([0.5, -1.25]), st.text("ab", max_size=2)
)
_ROWS = st.lists(st.dictionaries(st.sampled_from(["x", "y", "z"]), _VALUES), max_size=3)


def _write(folder: Path, files: list[list[dict[str, Any]]]) -> list[Path]:
    paths = []
    for place, rows in enumerate(files):
        # Rows of one file agree in type, as parquet wants it.
        names = {name for row in rows for name in row}
        kept = {name: next((row[name] for row in rows if row.get(name) is not None), None) for name in sorted(names)}
        rows = [{"run_id": str(place), **kept} for _ in rows]
        paths.append(folder / f"{place:03}.parquet")
        pq.write_table(
            pa.Table.from_pylist(rows, schema=None if rows else pa.schema([("run_id", pa.string())])), paths[-1]
        )
    return paths


@settings(max_examples=40, deadline=None)
@given(files=st.lists(_ROWS, min_size=1, max_size=12), size=st.integers(1, 5))
def test_reading_by_slices_and_schemas_is_reading_one_file_after_the_other(
    files: list[list[dict[str, Any]]], size: int
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "_SLICE", size)
        paths = _write(Path(folder), files)
        found = read.read_files(paths)
        whole = concatenate([pq.ParquetFile(path).read() for path in paths])
    together = read.in_file_order(concatenate([group.table for group in found.groups]), found.groups)
    assert together.to_pydict() == whole.to_pydict()
    assert together.schema.equals(whole.schema)
    schemas = [group.table.schema for group in found.groups]
    assert not any(one.equals(other) for i, one in enumerate(schemas) for other in schemas[:i])


def test_no_files_are_no_groups_and_no_warnings() -> None:
    found = read.read_files([])
    assert (found.groups, found.warnings) == ((), ())


def test_warnings_are_in_the_order_of_the_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.parquet" for i in range(70)]
    for path in paths:
        path.write_bytes(b"no parquet at all")
    found = read.read_files(paths)
    assert [line.split(":")[0] for line in found.warnings] == [str(path) for path in paths]
