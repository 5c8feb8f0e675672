"""BurstGPT: ten million requests to ChatGPT and GPT-4 of a campus over months, with their bursts and their failures.

CSV: Timestamp (seconds; the third file begins at 19,440,110), Model, Request tokens, Response tokens, Total tokens, Log
Type; since release 2.0 also Session ID (blank for calls of the API) and Elapsed time. A failed request has 0 response
tokens: 7 % of the third file. `workload.failed` says what becomes of them.

Source: github.com/HPMLL/BurstGPT (arXiv 2401.17644); CC-BY.
"""

from __future__ import annotations

from collections.abc import Iterator

from experiments.workloads.traces.base import TraceRow, csv_columns, csv_rows, seconds, whole

_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


class BurstGPT:
    """Both releases. Which model answered, and how long that took there, is not read."""

    def recognizes(self, first_line: str) -> bool:
        return csv_columns(first_line) >= set(_COLUMNS)

    def read(self, path: str) -> Iterator[TraceRow]:
        for line, cells in csv_rows(path, _COLUMNS, ("Session ID",)):
            yield TraceRow(
                line=line,
                arrival_s=seconds(cells["Timestamp"], path, line, "Timestamp"),
                num_prompt_tokens=whole(cells["Request tokens"], path, line, "Request tokens"),
                num_output_tokens=whole(cells["Response tokens"], path, line, "Response tokens"),
                session=cells.get("Session ID", "").strip() or None,
            )
