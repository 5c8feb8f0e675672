"""Read result folders into DataFrames.

A sweep's folder holds `<table>/<run_id>.parquet`, one file a run, and `configs/<run_id>.yaml`. Files of one table may
differ in their columns (a component of one point has options that another's lacks) and even in a column's type (an
option that is 4 in one point and "auto" in another), so a table is the union of its files' columns.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis.columns import RUN_KEY, TABLES
from analysis.read import Group, in_file_order, read_files
from analysis.remembered import read_rows

_FEW_COLUMNS = 64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sweep:
    """The tables of one or more result folders.

    Args:
        folders: where they were read from.
        runs: a row for each repeat of each point, failed ones too, in the order in which they ran.
        requests: a row a request.
        steps: a row an engine step.
        quality: a row a document or prompt.
        configs: run_id to the YAML file of its resolved config.
        warnings: one line for everything that could not be read or does not fit together.

    Every table has the column `sweep`, its folder's name, so that (sweep, run_id) joins them even where several sweeps
    hold the same point.
    """

    folders: tuple[Path, ...]
    runs: pd.DataFrame
    requests: pd.DataFrame
    steps: pd.DataFrame
    quality: pd.DataFrame
    configs: dict[str, Path]
    warnings: tuple[str, ...]

    def points(self, metric: str = "output_throughput_tps", **options: Any) -> pd.DataFrame:
        """One metric, one row a point: its knobs, `n`, `mean`, and the interval `low` to `high` over repeats.

        Args:
            metric: any column of numbers of `runs`.
            options: `interval` and `confidence`, as for `analysis.views.point_means`, which this is.
        """
        # scipy takes a second to import; whoever only loads tables does not wait for it.
        from analysis.views import point_means

        return point_means(self, metric, **options)


def load(folder: str | Path | Sequence[str | Path]) -> Sweep:
    """Read one result folder or several.

    Args:
        folder: such as `runs/quickstart`, a pattern such as `runs/night-*`, or a list of such.

    Returns:
        The tables. A file that cannot be read is left out and named in `warnings`; nothing else is lost with it.

    Raises:
        ValueError: a folder that does not exist or holds no tables, or a pattern that no folder of tables fits.
    """
    named = [folder] if isinstance(folder, (str, Path)) else folder
    folders = tuple(dict.fromkeys(path for one in named for path in _matching(one)))
    if not folders:
        raise ValueError("folder=[]: must be a sweep's folder such as runs/quickstart, or several")
    warnings: list[str] = []
    groups: dict[str, list[Group]] = {name: [] for name in TABLES}
    num_files = dict.fromkeys(TABLES, 0)
    configs: dict[str, Path] = {}
    for path, sweep_name in zip(folders, _names(folders), strict=True):
        files = {name: _parquet_files(path / name) for name in TABLES}
        if not any(files.values()):
            raise ValueError(_nothing_there(path))
        for name, own in files.items():
            # Many columns of one row are what takes long.
            reading = read_rows(own, path / ".cache" / "runs.arrow") if name == "runs" else read_files(own)
            warnings += reading.warnings
            groups[name] += [
                replace(group, table=_with_sweep(group.table, sweep_name), places=group.places + num_files[name])
                for group in reading.groups
            ]
            num_files[name] += len(own)
        configs.update({file.stem: file for file in sorted((path / "configs").glob("*.yaml"))})
    tables = {
        name: _frame(in_file_order(concatenate([group.table for group in own]), own), TABLES[name])
        for name, own in groups.items()
    }
    runs = tables["runs"].sort_values(["sweep", "order_index", "run_id"], ignore_index=True, kind="stable")
    tables["runs"] = runs
    warnings += _misfits(tables)
    return Sweep(folders=folders, **tables, configs=configs, warnings=tuple(warnings))


def concatenate(parts: Sequence[pa.Table]) -> pa.Table:
    """Union of columns, in order of first appearance. Types widen where Arrow knows how (null to anything, integer to
    float); a column whose types do not go together becomes text: `true`, `4`, `auto`."""
    if not parts:
        # Joins need keys of a type, even of no rows.
        return pa.table({key: pa.array([], pa.string()) for key in RUN_KEY})
    if all(part.schema.equals(parts[0].schema) for part in parts[1:]):
        return pa.concat_tables(parts)
    types: dict[str, list[pa.DataType]] = {}
    for part in parts:
        for column in part.schema:
            seen = types.setdefault(column.name, [])
            if column.type not in seen:
                seen.append(column.type)
    as_text = {name for name, seen in types.items() if len(seen) > 1 and not _unify(seen)}
    parts = [_text_columns(part, as_text) for part in parts]
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowInvalid:
        # An integer above 2^53 that a float cannot hold: such a column is text too.
        mixed = {name for name, seen in types.items() if len(seen) > 1}
        return pa.concat_tables([_text_columns(part, mixed) for part in parts], promote_options="permissive")


def _unify(types: Sequence[pa.DataType]) -> bool:
    try:
        pa.unify_schemas([pa.schema([("column", kind)]) for kind in types], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def _text_columns(part: pa.Table, names: Iterable[str]) -> pa.Table:
    for name in names:
        index = part.schema.get_field_index(name)
        if index >= 0 and not pa.types.is_null(part.schema.field(index).type):
            values = [None if v is None else _text(v) for v in part.column(index).to_pylist()]
            part = part.set_column(index, name, pa.array(values, pa.string()))
    return part


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _matching(folder: str | Path) -> list[Path]:
    """The folder itself, or the folders of tables that a pattern fits, by name."""
    if Path(folder).is_dir() or not glob.has_magic(str(folder)):
        return [Path(folder)]
    fitting = [Path(path) for path in sorted(glob.glob(str(folder)))]
    found = [path for path in fitting if any((path / name).is_dir() for name in TABLES)]
    if not found:
        raise ValueError(f"folder={folder}: no folder of tables fits this pattern; must be like runs/night-*")
    return found


def _parquet_files(folder: Path) -> list[Path]:
    """Finished files only: a writer's temporary file begins with a dot or ends in `.tmp`."""
    return sorted(file for file in folder.glob("*.parquet") if not file.name.startswith("."))


def _with_sweep(table: pa.Table, name: str) -> pa.Table:
    column = pa.repeat(pa.scalar(name, pa.string()), table.num_rows)
    index = table.schema.get_field_index("sweep")
    return table.append_column("sweep", column) if index < 0 else table.set_column(index, "sweep", column)


def _frame(table: pa.Table, expected: Sequence[str]) -> pd.DataFrame:
    """A plain DataFrame with at least the expected columns, those first and in their order."""
    first = ["sweep", *(name for name in expected if name != "sweep")]
    for name in sorted(set(first) - set(table.column_names)):
        table = table.append_column(name, pa.nulls(table.num_rows))
    known = set(first)
    order = [*first, *(name for name in table.column_names if name not in known)]
    # Columns one by one need not be copied together; very many of them are slow to add to, and pandas says so.
    return table.select(order).to_pandas(split_blocks=len(order) <= _FEW_COLUMNS)


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; whole paths where two share a name."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _nothing_there(folder: Path) -> str:
    if not folder.is_dir():
        return f"folder={folder}: no such folder; must be a sweep's, such as runs/quickstart (made by minivllm sweep)"
    inside = sorted(path.parent for path in folder.glob("*/runs") if _parquet_files(path))
    hint = f"; it holds sweeps, name one: {', '.join(map(str, inside[:8]))}" if inside else ""
    return f"folder={folder}: holds no tables (runs/*.parquet); must be a sweep's folder such as runs/quickstart{hint}"


def _misfits(tables: dict[str, pd.DataFrame]) -> list[str]:
    """What reads well but does not fit together."""
    lines = []
    runs = tables["runs"]
    versions = sorted(map(str, runs["schema_version"].dropna().unique()))
    if len(versions) > 1:
        lines.append(f"runs were written under several schema versions: {', '.join(versions)}")
    known = pd.MultiIndex.from_frame(runs[["sweep", "run_id"]])
    if known.has_duplicates:
        lines.append(f"{int(known.duplicated().sum())} runs appear more than once")
    for name in ("requests", "steps", "quality"):
        present = tables[name][["sweep", "run_id"]].drop_duplicates()
        orphans = int((~pd.MultiIndex.from_frame(present).isin(known)).sum())
        if orphans:
            lines.append(
                f"{name}: {orphans} run(s) have no row in runs (interrupted, or its file is corrupt); not used"
            )
    return lines
