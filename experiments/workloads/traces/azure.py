"""Azure's LLM inference traces of 2023 and 2024: when a request came and how long it was, of conversations and of code.

CSV: TIMESTAMP, ContextTokens, GeneratedTokens. Times of 2023 have seven digits of a second and no offset
(`2023-11-16 18:15:46.6805900`), those of 2024 up to six and one (`2024-05-10 00:00:00.009930+00:00`).

Source: github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md (Splitwise, arXiv 2311.18677) and
AzureLLMInferenceDataset2024.md (DynamoLLM, arXiv 2408.00741); CC-BY.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from datetime import date

from experiments.workloads.traces.base import TraceRow, csv_columns, csv_rows, whole, wrong

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[ T](?P<hour>[01]\d|2[0-3]):(?P<minute>[0-5]\d):(?P<second>[0-5]\d)"
    r"(?:\.(?P<fraction>\d{1,9}))?(?:Z|(?P<sign>[+-])(?P<off_hour>\d\d):?(?P<off_minute>[0-5]\d))?",
    re.ASCII,
)


class Azure:
    """Both years; arrivals are counted from the first row."""

    def recognizes(self, first_line: str) -> bool:
        return csv_columns(first_line) >= set(_COLUMNS)

    def read(self, path: str) -> Iterator[TraceRow]:
        first_ns = None
        for line, cells in csv_rows(path, _COLUMNS):
            time_ns = nanoseconds(cells["TIMESTAMP"])
            if time_ns is None:
                allowed = "a time such as 2024-05-10 00:00:00.009930+00:00"
                raise wrong(path, line, "TIMESTAMP", cells["TIMESTAMP"], allowed)
            first_ns = time_ns if first_ns is None else first_ns
            yield TraceRow(
                line=line,
                arrival_s=(time_ns - first_ns) / 1e9,
                num_prompt_tokens=whole(cells["ContextTokens"], path, line, "ContextTokens"),
                num_output_tokens=whole(cells["GeneratedTokens"], path, line, "GeneratedTokens"),
            )


def nanoseconds(text: str) -> int | None:
    """Nanoseconds of a time since year 1, in UTC where it has an offset; None where it is no time.

    Whole numbers: a float of seconds since then has no room for the digits behind the point.
    """
    found = _TIME.fullmatch(text.strip())
    day = None if found is None else _day(found["day"])
    if found is None or day is None:
        return None
    total_s = ((day * 24 + int(found["hour"])) * 60 + int(found["minute"])) * 60 + int(found["second"])
    if found["sign"]:
        offset_s = (int(found["off_hour"]) * 60 + int(found["off_minute"])) * 60
        total_s -= offset_s if found["sign"] == "+" else -offset_s
    return total_s * 10**9 + int((found["fraction"] or "").ljust(9, "0"))


@functools.lru_cache(maxsize=64)
def _day(text: str) -> int | None:
    try:
        return date.fromisoformat(text).toordinal()
    except ValueError:
        return None
