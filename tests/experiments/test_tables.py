"""Schemas, the types of `cfg.*` columns, and files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from experiments import tables

CHOICES = {"scheduler": "fcfs", "experiment": None, "tracking": "none"}


def _make_config(**node: object) -> dict:
    return {"node": node, "seed": 1, "sweep": {"folder": "x"}, "tracking": {"_target_": "x"}, "choices": CHOICES}


def test_flatten_keeps_scalars_writes_lists_as_json_and_names_members() -> None:
    assert tables.flatten(_make_config(a=1, b={"c": [1, "x"]}, d=None)) == {
        "cfg.node.a": 1,
        "cfg.node.b.c": '[1, "x"]',
        "cfg.node.d": None,
        "cfg.seed": 1,
        "cfg.scheduler": "fcfs",
    }


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        ((1, 2), "int64", [1, 2]),
        ((1, 2.5), "double", [1.0, 2.5]),
        ((1, None), "int64", [1, None]),
        ((None, None), "null", [None, None]),
        ((True, False), "bool", [True, False]),
        ((True, 1), "json", ["true", "1"]),
        (("a", 1), "json", ["a", "1"]),
    ],
)
def test_a_column_has_one_type_in_all_files_of_a_sweep(values: tuple, kind: str, stored: list, tmp_path: Path) -> None:
    configs = [_make_config(a=value) for value in values]
    types = tables.column_types(configs)
    assert types["cfg.node.a"] == kind
    for i, config in enumerate(configs):
        tables.write_table(tmp_path / f"{i}.parquet", tables.runs_table({"run_id": str(i)}, config, types))
    read = [tables.read_table(tmp_path / f"{i}.parquet") for i in range(2)]
    assert read[0].schema == read[1].schema
    assert pa.concat_tables(read)["cfg.node.a"].to_pylist() == stored


def test_a_key_that_only_some_points_have_is_null_elsewhere() -> None:
    with_it, without = _make_config(alpha=2), _make_config(beta="x")
    types = tables.column_types([with_it, without])
    assert tables.runs_table({}, without, types)["cfg.node.alpha"].to_pylist() == [None]


def test_what_is_missing_is_null_and_every_row_has_its_version() -> None:
    row = tables.runs_table({"run_id": "a"}, _make_config(), {}).to_pylist()[0]
    assert row.pop("run_id") == "a" and row.pop("schema_version") == tables.SCHEMA_VERSION
    assert set(row.values()) == {None}
    requests = tables.rows_table("requests", "a", [{"request_id": 0, "warmup": False}])
    assert requests["schema_version"].to_pylist() == [tables.SCHEMA_VERSION]


def test_the_tables_have_every_column_of_the_contract() -> None:
    contract = {
        "runs": "schema_version sweep run_id point_id repeat order_index status error_type error_message started_at "
        "wall_s workload_sha256 num_requests num_prompt_tokens num_output_tokens duration_s request_throughput_rps "
        "output_throughput_tps total_throughput_tps goodput_rps slo_attainment_fraction weights_bytes kv_cache_bytes "
        "peak_allocated_bytes peak_reserved_bytes peak_process_bytes kv_blocks_total kv_utilization_mean_fraction "
        "kv_fragmentation_mean_fraction prefix_hit_fraction num_evictions num_preemptions num_recomputed_tokens "
        "num_draft_tokens num_accepted_tokens acceptance_rate acceptance_length energy_j energy_per_output_token_j "
        "cost_per_million_output_tokens mbu_fraction mfu_fraction perplexity kl_mean_nats top1_agreement_fraction "
        "token_agreement_fraction "
        + " ".join(
            f"{a}_{b}_s" for a in ("ttft", "tpot", "itl", "e2e", "queue") for b in ("mean", "p50", "p90", "p99")
        ),
        "requests": "run_id request_id warmup client_id arrival_s first_scheduled_s first_token_s finish_s ttft_s "
        "tpot_s e2e_s queue_s num_prompt_tokens num_output_tokens num_cached_tokens num_preemptions num_draft_tokens "
        "num_accepted_tokens finish_reason slo_met output_sha256",
        "steps": "run_id step start_s duration_s schedule_s run_s commit_s num_prefill_tokens num_decode_tokens "
        "num_draft_tokens num_accepted_tokens num_running num_waiting kv_blocks_used kv_blocks_cached num_evictions "
        "num_preemptions",
        "quality": "run_id item_id num_tokens nll_sum_nats kl_sum_nats top1_matches first_divergence task task_correct",
    }
    for table, columns in contract.items():
        assert set(columns.split()) <= set(tables.SCHEMAS[table].names), table


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    tables.write_table(path, pa.table({"x": [1]}))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        tables.write_table(path, pa.table({"x": [2]}))
    assert pd.read_parquet(path)["x"].tolist() == [1]
    assert list(tmp_path.iterdir()) == [path]
