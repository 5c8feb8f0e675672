"""Times that were recorded or thought out, from a file. (A whole trace, lengths and all, is a workload.)"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.workloads.draws import is_number, require_positive
from minivllm.config import require


class Trace:
    """The times of a CSV file, counted from the first of them.

    Args:
        path: of the file, whose first line names its columns.
        column: with times in seconds, in any order.
        time_scale: 2 is twice as fast.

    Raises:
        ValueError: no such file or column, or a time that is no number.
    """

    concurrency = None

    def __init__(self, *, path: str, column: str = "arrival_s", time_scale: float = 1.0) -> None:
        require(isinstance(path, str) and bool(path), "arrivals.path", path, "a CSV file")
        require_positive("arrivals.time_scale", time_scale)
        found = array("d")
        try:
            with Path(path).open(encoding="utf-8", newline="") as file:
                rows = csv.DictReader(file)
                names = rows.fieldnames or ()
                require(column in names, "arrivals.column", column, f"a column of {path}: {', '.join(names)}")
                for row in rows:
                    try:
                        found.append(float(row[column]))
                    except (TypeError, ValueError) as error:
                        raise ValueError(_wrong(path, rows.line_num, column, row[column])) from error
                    if not is_number(found[-1]):
                        raise ValueError(_wrong(path, rows.line_num, column, row[column]))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"arrivals.path={path!r}: cannot be read: {error}") from error
        require(len(found) > 0, "arrivals.path", path, "a file with at least one time")
        times = np.sort(np.asarray(found))
        self._times = (times - times[0]) / time_scale

    def times(self, generator: np.random.Generator) -> Iterator[float | None]:
        return (float(at) for at in self._times)


def _wrong(path: str, line: int, column: str, value: str | None) -> str:
    return f"arrivals.path={path!r}: line {line}: {column}={value!r} is no time in seconds"
