"""What a check or a measurement found, one row each: kept line by line as it comes, then as a table for pandas and a
page for readers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Units in which more is better; in all others less is.
_MORE = frozenset({"tok/s", "TFLOP/s", "TB/s", "x"})
# Of a sweep's variants, on a short page.
_BEST_VARIANTS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure, or one verdict.

    Args:
        section: what it is part of.
        name: `<subject>: <case>`; the subject is what fails or is timed, such as `paged_decode float16`.
        value: in `unit`; None where nothing was measured.
        floor: what the machine's measured peaks allow, in `unit`.
        aim: what is hoped for (of a check: what is allowed), in `unit`.
        reference: what others have, in words.
        ok: of a check, whether it passed; False for what failed to run; None for a figure as such.
        detail: what else there is to know, in words.
    """

    section: str
    name: str
    value: float | None = None
    unit: str = ""
    floor: float | None = None
    aim: float | None = None
    reference: str = ""
    ok: bool | None = None
    detail: str = ""

    @property
    def subject(self) -> str:
        return self.name.split(": ")[0]

    @property
    def met(self) -> bool | None:
        """Whether the aim is reached; None where there is none, or nothing was measured."""
        if self.value is None or self.aim is None:
            return None
        return self.value >= self.aim if self.unit in _MORE else self.value <= self.aim

    def text(self) -> str:
        """In one line, for whoever watches."""
        mark = {True: "ok  ", False: "FAIL", None: "    "}[self.ok]
        value = f"{_number(self.value)} {self.unit}".strip() if self.value is not None else ""
        aim = "" if self.aim is None else f" (aim {_number(self.aim)})"
        return f"{mark} {self.section}/{self.name}  {value}{aim}  {self.detail}".rstrip()


def append(path: Path, row: Row) -> None:
    """Keep a row now, whatever happens next."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """All rows so far, but for a line that was cut off where its process was killed."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(Row(**json.loads(line)))
        except ValueError:
            continue
    return rows


def write_parquet(path: Path, rows: Sequence[Row], versions: Mapping[str, str], command: str) -> None:
    """The rows with what made them, for pandas."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {
        field.name: [getattr(row, field.name) for row in rows] for field in dataclasses.fields(Row)
    }
    columns["met"] = [row.met for row in rows]
    columns["versions"] = [json.dumps(dict(versions))] * len(rows)
    columns["command"] = [command] * len(rows)
    kinds = {"value": pa.float64(), "floor": pa.float64(), "aim": pa.float64(), "ok": pa.bool_(), "met": pa.bool_()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.table(columns, schema=schema), temporary)
    temporary.replace(path)


def markdown(rows: Sequence[Row], versions: Mapping[str, str], command: str, *, every_check: bool) -> str:
    """Figures in full; of the checks those that failed, and a line for each subject (all of them if `every_check`)."""
    lines = [f"`{command}`", "", ", ".join(f"{key} {value}" for key, value in versions.items() if value), ""]
    failed = [row for row in rows if row.ok is False]
    checks = [row for row in rows if row.ok is True]
    figures = [row for row in rows if row.ok is None]
    lines += [f"{len(checks)} checks passed, {len(failed)} failed.", ""]
    if failed:
        lines += ["| failed | value | allowed | what |", "| --- | ---: | ---: | --- |"]
        lines += [f"| {row.name} | {_number(row.value)} | {_number(row.aim)} | {_cell(row.detail)} |" for row in failed]
        lines.append("")
    if checks and every_check:
        lines += ["| passed | value | allowed | what |", "| --- | ---: | ---: | --- |"]
        lines += [f"| {row.name} | {_number(row.value)} | {_number(row.aim)} | {_cell(row.detail)} |" for row in checks]
        lines.append("")
    elif checks:
        lines += ["| passed | checks | worst, of what is allowed |", "| --- | ---: | ---: |"]
        lines += _summed_up(checks)
        lines.append("")
    if not every_check:
        figures = _shortened(figures)
    if figures:
        lines += [
            "| figure | value | unit | floor | of floor | aim | met | elsewhere | what |",
            "| --- | ---: | --- | ---: | ---: | ---: | --- | --- | --- |",
        ]
        lines += [_figure(row) for row in figures]
    return "\n".join(lines) + "\n"


def _summed_up(checks: Sequence[Row]) -> list[str]:
    by_subject: dict[str, list[Row]] = {}
    for row in checks:
        by_subject.setdefault(row.subject, []).append(row)
    lines = []
    for subject, rows in by_subject.items():
        shares = [row.value / row.aim for row in rows if row.value is not None and row.aim]
        lines.append(f"| {subject} | {len(rows)} | {f'{max(shares):.0%}' if shares else ''} |")
    return lines


def _shortened(figures: Sequence[Row]) -> list[Row]:
    """Without the lesser variants of a sweep: of each the default and the best remain."""
    by_subject: dict[str, list[Row]] = {}
    for row in figures:
        by_subject.setdefault(row.subject, []).append(row)
    kept = []
    for subject, rows in by_subject.items():
        if subject.startswith("tune ") and len(rows) > 2 * _BEST_VARIANTS:
            measured = [row for row in rows if row.value is not None]
            best = sorted(measured, key=lambda row: row.value or 0.0, reverse=rows[0].unit in _MORE)[:_BEST_VARIANTS]
            rows = [row for row in rows if row in best or row.name.endswith(": default")]
        kept += rows
    return kept


def _figure(row: Row) -> str:
    share = ""
    if row.value and row.floor:
        # How much of what the machine could do was done.
        share = f"{row.value / row.floor if row.unit in _MORE else row.floor / row.value:.0%}"
    value = "not measured" if row.value is None else _number(row.value)
    met = {True: "yes", False: "no", None: ""}[row.met]
    return (
        f"| {row.name} | {value} | {row.unit} | {_number(row.floor)} | {share} | {_number(row.aim)} | {met} | "
        f"{row.reference} | {_cell(row.detail)} |"
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:200]
