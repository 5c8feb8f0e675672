"""The seam of trace formats: a reader turns lines of a file into rows, one at a time.

A file of millions of requests is never in memory: readers are generators. What is wrong in a file is one line that
names the file, the line, the column and the value.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceRow:
    """One request of a trace.

    Args:
        line: of the file, from 1; for messages.
        arrival_s: on the trace's own clock, whose zero means nothing.
        num_prompt_tokens: 0 or more; None where `prompt` is text that nobody has tokenized yet.
        num_output_tokens: 0 or more; traces record failed requests with 0.
        client_id, priority: as in `WorkloadItem`.
        session: conversation that the request is a turn of.
        hash_ids: names of the prompt's blocks from its beginning: equal ids, equal tokens. They may cover the
            beginning alone, and the last block may be partial.
        prompt, prompt_token_ids: what was asked, where the trace says it; at most one of them.
    """

    line: int
    arrival_s: float
    num_prompt_tokens: int | None
    num_output_tokens: int
    client_id: int = 0
    priority: int = 0
    session: str | None = None
    hash_ids: tuple[int, ...] | None = None
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None


class TraceReader(Protocol):
    """A format. It has no state: one object may read many files."""

    def recognizes(self, first_line: str) -> bool:
        """Whether a file that begins with this line is likely in this format."""
        ...

    def read(self, path: str) -> Iterator[TraceRow]:
        """The rows of a file in its order, which is that of their arrival.

        Raises:
            ValueError: the file cannot be read, or a line of it is not in this format.
        """
        ...


def wrong(path: str, line: int, column: str, value: object, allowed: str) -> ValueError:
    """The one-line error of a wrong cell."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return ValueError(f"workload.path={path!r}: line {line}: {column}={shown}: must be {allowed}")


def whole(value: object, path: str, line: int, column: str, *, least: int | None = 0) -> int:
    """A whole number, in text or in JSON; `least` is the smallest that is allowed."""
    number = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and value.isascii() and value.strip().removeprefix("-").isdigit():
        number = int(value)
    if number is None or (least is not None and number < least):
        raise wrong(path, line, column, value, "a whole number" + (f", {least} or more" if least is not None else ""))
    return number


def seconds(value: object, path: str, line: int, column: str) -> float:
    """A time of 0 or more, in text or in JSON."""
    number = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool) and "_" not in str(value):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise wrong(path, line, column, value, "a number, 0 or more")
    return number


def text_lines(path: str) -> Iterator[str]:
    """Lines of a UTF-8 file with their ends; a byte order mark is no part of the first.

    Raises:
        ValueError: the file cannot be read, or a line is no text.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise wrong(path, number, "line", line, "text in UTF-8") from error
    except OSError as error:
        raise ValueError(f"workload.path={path!r}: cannot be read: {error}") from error


def csv_columns(first_line: str) -> set[str]:
    """Names in the header of a CSV file; what is no header is in no format."""
    return {name.strip() for name in next(csv.reader([first_line]), [])}


def csv_rows(
    path: str, needed: Sequence[str], optional: Sequence[str] = (), *, others: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a CSV file with a header, blank ones left out.

    Args:
        path: of the file.
        needed, optional: columns to return, in whatever order the file has them.
        others: whether there may be further columns, which nothing reads.

    Returns: number of the line, and the columns that the file has.
    """
    lines = csv.reader(text_lines(path))
    header = [name.strip() for name in _next(lines, path) or ()]
    for name in needed:
        if header.count(name) != 1:
            raise wrong(path, 1, "header", ",".join(header), f"one with a column {name}")
    for name in header:
        if not others and name not in (*needed, *optional):
            raise wrong(path, 1, "column", name, f"one of {', '.join((*needed, *optional))}")
    places = [(name, header.index(name)) for name in (*needed, *optional) if name in header]
    while (cells := _next(lines, path)) is not None:
        if cells and len(cells) != len(header):
            raise wrong(path, lines.line_num, "line", ",".join(cells), f"one of {len(header)} columns, as the header")
        if cells:
            yield lines.line_num, {name: cells[place] for name, place in places}


def _next(lines: Any, path: str) -> list[str] | None:
    """The next line of a CSV reader, or None at the end."""
    try:
        return next(lines, None)
    except csv.Error as error:
        raise wrong(path, lines.line_num, "line", str(error), "CSV") from error


def json_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines of a JSONL file, blank ones left out: number of the line, and the object."""
    for number, text in enumerate(text_lines(path), start=1):
        if text.strip():
            found = json_object(text)
            if found is None:
                raise wrong(path, number, "line", text.strip(), "a JSON object")
            yield number, found


def json_object(text: str) -> dict[str, Any] | None:
    """A JSON object, or None where the text is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def several(value: object, path: str, line: int, column: str) -> tuple[int, ...]:
    """A JSON list of whole numbers, 0 or more."""
    if not isinstance(value, list):
        raise wrong(path, line, column, value, "a list of whole numbers")
    return tuple(whole(item, path, line, column) for item in value)
