"""Many small parquet files into few Arrow tables.

A sweep's table is one file a run. A run's own row is a file of one row and 150 columns, and reading it costs memory
allocations, not bytes: a thousand such files held as tables scatter the heap so that each later one takes longer. So
files are read a slice at a time, each slice by one thread, and what a slice holds is put together before the next.

Files of one schema become one table. There are few schemas, often one, so whatever is done about columns that a file
lacks, or types that differ, is done to few tables instead of to a thousand.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_NUM_READERS = min(4, os.cpu_count() or 1)
_SLICE = 32


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """The rows of files that have one schema.

    Args:
        table: file after file.
        places: which of the files read each is.
        num_rows: of each of them.
    """

    table: pa.Table
    places: np.ndarray
    num_rows: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reading:
    """What was found in a list of files.

    Args:
        groups: in the order in which their schemas first appear.
        warnings: a line for each file that was left out.
    """

    groups: tuple[Group, ...]
    warnings: tuple[str, ...]


def read_files(files: Sequence[Path]) -> Reading:
    """Read them all; one that is no whole table of runs is a warning, and nothing else is lost with it.

    Args:
        files: parquet files with a column `run_id`; their schemas may differ.
    """
    parts = [range(start, min(start + _SLICE, len(files))) for start in range(0, len(files), _SLICE)]
    # A file's thread for itself: reading columns in parallel costs more than small files have to read.
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        read = list(readers.map(lambda places: _read_slice(files, places), parts))
    return Reading(
        groups=merged([group for groups, _ in read for group in groups]),
        warnings=tuple(line for _, lines in read for line in lines),
    )


def merged(groups: Sequence[Group]) -> tuple[Group, ...]:
    """One group a schema, in the order in which schemas first appear among the files."""
    found: dict[bytes, list[Group]] = {}
    for group in groups:
        found.setdefault(_key(group.table.schema), []).append(group)
    joined = [
        Group(
            table=pa.concat_tables([group.table for group in own]),
            places=np.concatenate([group.places for group in own]),
            num_rows=np.concatenate([group.num_rows for group in own]),
        )
        for own in found.values()
    ]
    return tuple(sorted(joined, key=lambda group: int(group.places.min())))


def in_file_order(table: pa.Table, groups: Sequence[Group]) -> pa.Table:
    """The rows of all groups, one group after the other, put back in the order of the files."""
    files = np.concatenate([np.repeat(group.places, group.num_rows) for group in groups] or [np.empty(0, int)])
    return table if (np.diff(files) >= 0).all() else table.take(np.argsort(files, kind="stable"))


def _key(schema: pa.Schema) -> bytes:
    """The same for schemas that are the same, whatever notes a writer left in them."""
    key: bytes = schema.remove_metadata().serialize().to_pybytes()
    return key


def _read_slice(files: Sequence[Path], places: range) -> tuple[list[Group], list[str]]:
    tables: dict[bytes, tuple[list[pa.Table], list[int]]] = {}
    warnings = []
    for place in places:
        table = _read(files[place])
        if isinstance(table, str):
            warnings.append(table)
        else:
            own, where = tables.setdefault(_key(table.schema), ([], []))
            own.append(table)
            where.append(place)
    # Into one piece of memory a column, so that the many small pieces go before the next slice is read.
    groups = [
        Group(
            table=pa.concat_tables(own).combine_chunks(),
            places=np.array(where),
            num_rows=np.array([table.num_rows for table in own]),
        )
        for own, where in tables.values()
    ]
    return groups, warnings


def _read(file: Path) -> pa.Table | str:
    """The table, or a warning that says why there is none."""
    try:
        with pq.ParquetFile(pa.py_buffer(file.read_bytes()), page_checksum_verification=True) as parquet:
            table = parquet.read(use_threads=False)
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        return f"{file}: cannot be read and is left out: {_first_line(error)}"
    if "run_id" not in table.column_names:
        return f"{file}: has no column run_id and is left out"
    return table


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
