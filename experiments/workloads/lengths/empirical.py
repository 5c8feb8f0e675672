"""Lengths as they were counted: rows of a file, each drawn as often as it was seen."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.workloads.draws import Weighted, endless
from minivllm.config import require

_SIDES = ("num_prompt_tokens", "num_output_tokens")


class Empirical:
    """Rows of a CSV file with the columns num_prompt_tokens, num_output_tokens and, where rows were seen more than
    once, count.

    Args:
        path: of the file.
        joint: draw prompt and output from one row, so that they go together as they did; without it from two.

    Raises:
        ValueError: no such file, or a line that is not in this form.
    """

    def __init__(self, *, path: str, joint: bool = True) -> None:
        require(isinstance(path, str) and bool(path), "lengths.path", path, "a CSV file")
        require(isinstance(joint, bool), "lengths.joint", joint, "true or false")
        self._joint = joint
        rows = _read(path)
        require(any(row[2] for row in rows), "lengths.path", path, "a file with at least one row")
        table = np.asarray(rows, dtype=np.int64)
        self._sides = table[:, 0], table[:, 1]
        self._rows = Weighted(table[:, 2])

    def pairs(self, generator: np.random.Generator) -> Iterator[tuple[int, int]]:
        rows, others = generator.spawn(2)
        prompts, outputs = self._sides
        if not self._joint:
            return zip(self._column(prompts, rows), self._column(outputs, others), strict=True)
        return ((prompts.item(row), outputs.item(row)) for row in endless(lambda size: self._rows.draw(size, rows)))

    def _column(self, values: np.ndarray, generator: np.random.Generator) -> Iterator[int]:
        return endless(lambda size: values[self._rows.draw(size, generator)])


def _read(path: str) -> list[tuple[int, int, int]]:
    found = []
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            for name in _SIDES:
                require(name in (rows.fieldnames or ()), "lengths.path", path, f"a CSV file with a column {name}")
            for row in rows:
                prompt, output = (_count(path, rows.line_num, name, row[name], least=1) for name in _SIDES)
                count = _count(path, rows.line_num, "count", row["count"], least=0) if "count" in row else 1
                found.append((prompt, output, count))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"lengths.path={path!r}: cannot be read: {error}") from error
    return found


def _count(path: str, line: int, name: str, text: str | None, *, least: int) -> int:
    valid = text is not None and text.strip().isdecimal() and int(text) >= least
    require(valid, f"lengths.path={path!r}: line {line}: {name}", text, f"a whole number, {least} or more")
    assert text is not None
    return int(text)
