"""A table that is written while it is made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.tables import SCHEMA_VERSION, SCHEMAS

ROWS_AT_ONCE = 50_000


class WriteError(OSError):
    """Rows cannot be written: the run is lost, whatever it did."""


class TableStream:
    """One file of a table. Rows go to a temporary name in batches, and the file gets its own name when it is closed:
    whoever looks sees all or nothing. A table of one batch is written at the end alone.

    Args:
        path: of the file.
        table: whose schema it has.
        run_id: of all its rows.
    """

    def __init__(self, path: Path, table: str, run_id: str) -> None:
        self._path, self._schema, self._run_id = path, SCHEMAS[table], run_id
        # As `tables.write_table` names it.
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._writer: pq.ParquetWriter | None = None
        self._batches: list[pa.RecordBatch] = []
        self._num_rows = 0

    def write(self, columns: Mapping[str, Sequence[Any] | np.ndarray], num_rows: int) -> None:
        """Append rows.

        Args:
            columns: [num_rows] each; those left out are null, and so is NaN in an array.
            num_rows: of this batch.

        Raises:
            WriteError: the disk is full, or the folder is gone.
        """
        if not num_rows:
            return
        unknown = set(columns) - set(self._schema.names)
        assert not unknown, f"no such columns: {unknown}"
        head = {"schema_version": pa.repeat(pa.scalar(SCHEMA_VERSION), num_rows)}
        head["run_id"] = pa.repeat(pa.scalar(self._run_id), num_rows)
        arrays = []
        for field in self._schema:
            if field.name in head:
                arrays.append(head[field.name])
            elif field.name in columns:
                values = columns[field.name]
                is_array = isinstance(values, np.ndarray)
                arrays.append(pa.array(values, type=field.type, from_pandas=is_array))
            else:
                arrays.append(pa.nulls(num_rows, field.type))
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._num_rows += num_rows
        if self._num_rows >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        try:
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self._temporary, self._schema)
            self._writer.write_table(pa.Table.from_batches(self._batches, schema=self._schema))
        except OSError as error:
            raise WriteError(*error.args) from error
        self._batches, self._num_rows = [], 0

    def close(self) -> None:
        """Write what is left, flush to the disk, rename.

        Raises:
            WriteError: as `write`.
        """
        try:
            self._flush()
            assert self._writer is not None
            self._writer.close()
            with open(self._temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self._path)
        except OSError as error:
            raise WriteError(*error.args) from error
        finally:
            self._temporary.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave no file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._batches = []
        self._temporary.unlink(missing_ok=True)
