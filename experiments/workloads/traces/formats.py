"""Which reader reads a file: named, recognized by its first line, or a class from outside."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.workloads.traces.azure import Azure
from experiments.workloads.traces.base import TraceReader, TraceRow, text_lines, wrong
from experiments.workloads.traces.burstgpt import BurstGPT
from experiments.workloads.traces.mooncake import Mooncake
from experiments.workloads.traces.plain import PlainCsv, PlainJsonl
from minivllm.component import Component

FORMATS: dict[str, TraceReader] = {
    "azure": Azure(),
    "burstgpt": BurstGPT(),
    "mooncake": Mooncake(),
    "csv": PlainCsv(),
    "jsonl": PlainJsonl(),
}


def read_trace(path: str, format: str = "auto") -> Iterator[TraceRow]:
    """Rows of a trace, in order of arrival; the file is read as they are asked for.

    Args:
        path: of the file.
        format: one of `FORMATS`, `auto` to recognize it, or the import path of a `TraceReader`.

    Raises:
        ValueError: no such file or format, or a wrong line.
    """
    last_s = 0.0
    for row in _reader(path, format).read(path):
        if row.arrival_s < last_s:
            allowed = f"the line above's {last_s} s or later; sort the file by it"
            raise wrong(path, row.line, "arrival", f"{row.arrival_s} s", allowed)
        last_s = row.arrival_s
        yield row


def _reader(path: str, format: str) -> TraceReader:
    if format in FORMATS:
        return FORMATS[format]
    if "." in format:
        reader: TraceReader = Component(target=format).make("workload.format")
        return reader
    members = f"{', '.join(FORMATS)}, or the import path of a reader of your own"
    if format != "auto":
        raise ValueError(f"workload.format={format!r}: must be auto, {members}")
    first = next(text_lines(path), "").strip()
    for reader in FORMATS.values():
        if reader.recognizes(first):
            return reader
    raise wrong(path, 1, "header", first, f"that of a format we know; choose workload.format of {members}")
