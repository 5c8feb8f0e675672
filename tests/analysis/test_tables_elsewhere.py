"""The tables as they lie, read by programs that know nothing of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import polars
import pytest

import analysis
from experiments import tables

NUM_REQUESTS = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three points, two repeats, written as a sweep writes them; one point has an option that the others lack."""
    folder = tmp_path_factory.mktemp("sweeps") / "elsewhere"
    configs: list[dict[str, Any]] = [
        {"scheduler": {"kind": kind, **more}, "cache": {"block_size": 16}, "choices": {"scheduler": kind}}
        for kind, more in (("fcfs", {}), ("aging", {"weight": 0.5}), ("static", {}))
    ]
    # As two launches of one sweep do: other axes, other columns.
    types = [tables.column_types(configs[:1]), tables.column_types(configs), tables.column_types(configs)]
    for repeat in range(2):
        for place, config in enumerate(configs):
            run_id = f"{place:012x}-r{repeat}"
            row = {"sweep": "elsewhere", "run_id": run_id, "point_id": run_id[:12], "repeat": repeat, "status": "ok"}
            row |= {"order_index": 3 * repeat + place, "output_throughput_tps": 100.0 * (place + 1) + repeat}
            requests = [
                {"request_id": i, "warmup": i == 0, "ttft_s": 0.01 * (i + place), "finish_reason": "length"}
                for i in range(NUM_REQUESTS)
            ]
            runs = tables.runs_table(row, config, types[place])
            tables.write_table(folder / "runs" / f"{run_id}.parquet", runs)
            tables.write_table(
                folder / "requests" / f"{run_id}.parquet", tables.rows_table("requests", run_id, requests)
            )
    return folder


def test_duckdb_reads_and_joins_them(folder: Path) -> None:
    query = f"""
        SELECT r."cfg.scheduler", avg(r.output_throughput_tps), max(r."cfg.scheduler.weight")
        FROM read_parquet('{folder}/runs/*.parquet', union_by_name=true) r GROUP BY 1 ORDER BY 2
    """
    assert duckdb.sql(query).fetchall() == [("fcfs", 100.5, None), ("aging", 200.5, 0.5), ("static", 300.5, None)]
    joined = f"""
        SELECT count(*), avg(q.ttft_s) FROM '{folder}/requests/*.parquet' q
        JOIN read_parquet('{folder}/runs/*.parquet', union_by_name=true) r USING (run_id)
        WHERE NOT q.warmup AND r."cfg.scheduler" = 'aging'
    """
    count, mean = duckdb.sql(joined).fetchall()[0]
    assert (count, mean) == (12, pytest.approx(0.045))


def test_polars_reads_and_joins_them(folder: Path) -> None:
    files = sorted((folder / "runs").glob("*.parquet"))
    runs = polars.concat([polars.read_parquet(file) for file in files], how="diagonal_relaxed")
    means = runs.group_by("cfg.scheduler").agg(polars.col("output_throughput_tps").mean()).sort("output_throughput_tps")
    assert means.rows() == [("fcfs", 100.5), ("aging", 200.5), ("static", 300.5)]
    requests = polars.scan_parquet(folder / "requests" / "*.parquet").filter(~polars.col("warmup")).collect()
    joined = requests.join(runs.filter(polars.col("cfg.scheduler") == "aging"), on="run_id")
    assert (len(joined), joined["ttft_s"].mean()) == (12, pytest.approx(0.045))


def test_both_see_what_we_see(folder: Path) -> None:
    ours = analysis.load(folder)
    assert len(ours.requests) == 6 * NUM_REQUESTS
    requests = f"'{folder}/requests/*.parquet'"
    for column in ("ttft_s", "request_id"):
        total = ours.requests[column].sum()
        assert duckdb.sql(f"SELECT sum({column}) FROM {requests}").fetchall()[0][0] == pytest.approx(total)
        assert polars.read_parquet(folder / "requests" / "*.parquet")[column].sum() == pytest.approx(total)
    pushed = duckdb.sql(f"SELECT column_name FROM (DESCRIBE SELECT * FROM {requests})").fetchall()
    assert {name for (name,) in pushed} == set(ours.requests.columns) - {"sweep"}
