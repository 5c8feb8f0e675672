"""Rows of runs that were read before, in one file, so that reading a thousand of them again takes no thousand files.

`<sweep>/.cache/runs.arrow` is a copy that anyone may delete. The files of the runs stay the truth: a row is taken from
the copy only where its file has the size, the times and the inode that it had when it was read. What was changed, added
or copied here since then is read again, and what could not be read is not remembered. A folder that cannot be written
is read as slowly as the first time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from analysis.read import Group, Reading, merged, read_files

# Fewer files are read in the time in which one blinks.
FEWEST_FILES = 64
# A file may be written twice within a tick of its file system's clock, so younger ones are read once more.
_SETTLED_NS = 2_000_000_000
_FORMAT = b"minivllm rows 1"
_FILE = "\0file"
_MARKS = ("\0size", "\0mtime_ns", "\0ctime_ns", "\0inode")


def read_rows(files: Sequence[Path], copy: Path) -> Reading:
    """As `analysis.read.read_files`, of files that hold a row each.

    Args:
        files: of one folder.
        copy: where rows are remembered.
    """
    if len(files) < FEWEST_FILES:
        return read_files(files)
    marks = np.array([_mark(file) for file in files])
    known = _recall(copy, files, marks)
    seen = np.zeros(len(files), bool)
    for group in known:
        seen[group.places] = True
    rest = np.flatnonzero(~seen)
    if not len(rest):
        return Reading(groups=merged(known), warnings=())
    fresh = read_files([files[place] for place in rest.tolist()])
    groups = merged([*known, *(replace(group, places=rest[group.places]) for group in fresh.groups)])
    _remember(copy, groups, files, marks)
    return Reading(groups=groups, warnings=fresh.warnings)


def _mark(file: Path) -> tuple[int, int, int, int]:
    """What changes when the file does."""
    try:
        found = file.stat()
    except OSError:
        # Gone, or not for us: reading it will say so.
        return (-1, -1, -1, -1)
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _recall(copy: Path, files: Sequence[Path], marks: np.ndarray) -> list[Group]:
    """The rows whose files are as they were, by schema."""
    try:
        settled_ns = copy.stat().st_mtime_ns - _SETTLED_NS
        tables = _read_copy(copy)
    except (OSError, pa.ArrowException):
        return []
    place_of = {file.name: place for place, file in enumerate(files)}
    groups = []
    for table in tables:
        places = np.array([place_of.get(name, -1) for name in table.column(_FILE).to_pylist()], int)
        were = np.column_stack([table.column(name).to_numpy() for name in _MARKS])
        same = (places >= 0) & (were == marks[places]).all(axis=1) & (were[:, 1:3] < settled_ns).all(axis=1)
        table = table.drop_columns([_FILE, *_MARKS])
        if same.any():
            kept = table if same.all() else table.filter(pa.array(same))
            groups.append(Group(table=kept, places=places[same], num_rows=np.ones(int(same.sum()), int)))
    return groups


def _read_copy(copy: Path) -> list[pa.Table]:
    data = pa.py_buffer(copy.read_bytes())
    if data[: len(_FORMAT)].to_pybytes() != _FORMAT:
        return []
    source = pa.BufferReader(data)
    source.seek(len(_FORMAT))
    tables = []
    while source.tell() < data.size:
        with pa.ipc.open_stream(source) as stream:
            tables.append(stream.read_all())
        tables[-1].validate(full=True)
    return tables


def _remember(copy: Path, groups: Sequence[Group], files: Sequence[Path], marks: np.ndarray) -> None:
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
    try:
        copy.parent.mkdir(exist_ok=True)
        with open(temporary, "wb") as sink:
            sink.write(_FORMAT)
            for group in groups:
                # A file of several rows, or none, is no row of a run.
                if (group.num_rows != 1).any():
                    continue
                table = group.table.append_column(
                    _FILE, pa.array([files[place].name for place in group.places.tolist()])
                )
                for name, values in zip(_MARKS, marks[group.places].T, strict=True):
                    table = table.append_column(name, pa.array(values))
                with pa.ipc.new_stream(sink, table.schema) as stream:
                    stream.write_table(table.combine_chunks())
        os.replace(temporary, copy)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
