"""The tables on disk: their schemas, and how a file is written and read.

For who reads them: `runs/<sweep>/<table>/<run_id>.parquet`, one file a run, tables `runs`, `requests`, `steps`, and
`quality` where that was measured. A file of `runs` is renamed into place last: a run counts only where it is readable.
Beside the columns of the schemas below, `runs` has one `cfg.<dotted key>` column a value of the resolved config and
`cfg.<group>` for the chosen member (or class path) of each group. Their types follow the values over the whole sweep:
bool, int64, double, string; int and double make double, any other mix makes strings of JSON, lists are strings of JSON,
a key that is null in every point is of null type, and a point that lacks a key has null. Two launches of one sweep with
different axes may differ in these columns, so join files by column name. Times in `requests` and `steps` are seconds
from the start of the measurement; those of warm-up requests are negative. Missing is null, never 0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 6
TABLES = ("runs", "requests", "steps", "quality")
_TYPES = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
    "null": pa.null(),
    "list<int64>": pa.list_(pa.int64()),
    "list<double>": pa.list_(pa.float64()),
}


def _fields(kind: str, names: str) -> list[pa.Field]:
    return [pa.field(name, _TYPES[kind]) for name in names.split()]


LATENCIES = ("ttft", "tpot", "itl", "e2e", "queue")
STATISTICS = ("mean", "p50", "p90", "p99")
# Of the lists below, place i is the draft i + 1 places behind the newest token: verifications whose drafts reached it,
# those in which the verdict fell on it (all before it were accepted), and in which it was accepted.
BY_POSITION = ("proposed_by_position", "evaluated_by_position", "accepted_by_position")
# Null where speculation is off. acceptance_rate: accepted / proposed; acceptance_length: tokens a verification.
_SPECULATED = [
    *_fields("int64", "num_verifications num_draft_tokens num_accepted_tokens"),
    *_fields("double", "acceptance_rate acceptance_length"),
    *_fields("list<int64>", " ".join(BY_POSITION)),
]

RUNS = pa.schema(
    [
        *_fields("int64", "schema_version"),
        *_fields("string", "sweep run_id point_id"),
        *_fields("int64", "repeat order_index"),
        # How the sweep went about its runs; min and max differ where repeats go on until a metric is known.
        *_fields("string", "design.order"),
        *_fields("int64", "design.order_seed design.min_repeats design.max_repeats"),
        *_fields("string", "design.repeat_metric"),
        *_fields("double", "design.relative_half_width design.cool_down_s"),
        # What started it, and how many runs may have shared its machine at one time.
        *_fields("string", "design.launcher"),
        *_fields("int64", "design.num_at_once"),
        # status: ok, error (raised), crashed (died), timeout, invalid (refused by its config).
        *_fields("string", "status error_type error_message"),
        pa.field("started_at", pa.timestamp("us", tz="UTC")),
        *_fields("double", "wall_s"),
        # Of wall_s, what is neither load, measurement nor quality is the harness. reference_s is the wait for the
        # unquantized model's answers, which are made once a sweep.
        *_fields("double", "startup_s load_s warmup_s record_s quality_s reference_s"),
        *_fields("string", "workload_sha256"),
        *_fields("int64", "num_requests num_prompt_tokens num_output_tokens"),
        *_fields("double", "duration_s request_throughput_rps output_throughput_tps total_throughput_tps"),
        *_fields("double", " ".join(f"{what}_{stat}_s" for what in LATENCIES for stat in STATISTICS)),
        *_fields("double", "goodput_rps slo_attainment_fraction"),
        # Of an open loop: requests over the time until the last was due, and how late the client was.
        *_fields("double", "offered_rate_rps arrival_lateness_p99_s"),
        # Mean over time; requests that were preempted wait again.
        *_fields("double", "num_waiting_mean"),
        # Defined in `fairness`, over clients, null where there is one; and in `fluidity`, null without limits.
        *_fields("double", "service_gap_max_tokens jain_fairness_fraction fluidity_mean_fraction"),
        *_fields("int64", "weights_bytes kv_cache_bytes peak_allocated_bytes peak_reserved_bytes peak_process_bytes"),
        # Of the weights that were quantized: how, how many, their bytes with scales, and 8 times the ratio of the two.
        *_fields("string", "quantization"),
        *_fields("int64", "num_quantized_weights quantized_bytes"),
        *_fields("double", "bits_per_weight"),
        *_fields("int64", "kv_blocks_total"),
        *_fields("double", "kv_utilization_mean_fraction kv_fragmentation_mean_fraction prefix_hit_fraction"),
        *_fields("int64", "num_evictions num_preemptions num_recomputed_tokens num_swapped_blocks"),
        # Of the measured requests.
        *_SPECULATED,
        # Of the time of all steps; what is left is scheduling, and steps without drafts.
        *_fields("double", "draft_time_fraction verify_time_fraction"),
        # False where acceptance was made up, so that outputs mean nothing and have no quality.
        *_fields("bool", "text_valid"),
        *_fields("double", "energy_j energy_per_output_token_j cost_per_million_output_tokens"),
        # Where energy_j comes from; where it is null, why.
        *_fields("string", "energy_source"),
        # Whether times are those of a model of the device; of which hardware, and how wrong the model was where it was
        # fitted: mean relative error of the time of steps that it had not seen.
        *_fields("bool", "simulated"),
        *_fields("string", "step_time_model hardware"),
        *_fields("double", "step_time_error_fraction"),
        # What computed: execution.kernels, with auto resolved.
        *_fields("string", "kernels"),
        *_fields("double", "mbu_fraction mfu_fraction"),
        # What the two are of: sums over `steps`, of which `counted_*` say what an ideal kernel moves and computes.
        *_fields("double", "counted_bytes counted_flops"),
        # Means over steps; host_fraction is the share of scheduling and committing in the time of the steps.
        *_fields("double", "step_schedule_mean_s step_run_mean_s step_commit_mean_s step_client_mean_s host_fraction"),
        # The device's own time of a step, and the share of the time from first to last step in which it had none; null
        # where the device does not tell.
        *_fields("double", "step_device_mean_s device_idle_fraction"),
        # Kernels that had to be compiled while requests were measured: 0, or the times are not to be believed.
        *_fields("int64", "num_compilations"),
        # Defined in `quality.rows`; null where it was not measured, and in every repeat but the first.
        *_fields("double", "perplexity kl_mean_nats top1_agreement_fraction token_agreement_fraction"),
        *_fields("double", "top1_flip_fraction task_score_fraction task_flip_fraction first_divergence_mean_tokens"),
        *_fields("int64", "quality_num_tokens"),
        *_fields("string", "env.git_sha"),
        *_fields("bool", "env.git_dirty"),
        *_fields("string", "env.python env.torch env.triton env.transformers env.platform env.cpu env.machine"),
        *_fields("int64", "env.cpu_count env.threads"),
        # Of the last minute, when the run started and when its measurement was over.
        *_fields("double", "env.load_average env.load_average_end"),
        *_fields("string", "env.gpu env.gpu_driver"),
        # "nvml", or why the next four are null.
        *_fields("string", "env.gpu_sensors"),
        *_fields("int64", "env.gpu_clock_start_mhz env.gpu_clock_end_mhz"),
        *_fields("int64", "env.gpu_temperature_start_c env.gpu_temperature_end_c"),
        # Measured on this machine once a sweep, with the threads of the run and in the dtype of its model.
        *_fields("double", "env.peak_bandwidth_bytes_per_s env.peak_flops_per_s"),
    ]
)
REQUESTS = pa.schema(
    [
        *_fields("int64", "schema_version"),
        *_fields("string", "run_id"),
        *_fields("int64", "request_id"),
        *_fields("bool", "warmup"),
        *_fields("int64", "client_id priority"),
        *_fields("double", "arrival_s arrival_lateness_s first_scheduled_s first_token_s finish_s"),
        *_fields("double", "ttft_s tpot_s e2e_s queue_s itl_max_s"),
        *_fields("double", "fluidity_fraction"),
        *_fields("int64", "num_prompt_tokens num_output_tokens predicted_output_tokens num_cached_tokens"),
        *_fields("int64", "num_preemptions num_recomputed_tokens"),
        # Intervals of waiting between a preemption and being served again, and their sum.
        *_fields("list<double>", "preempted_from_s preempted_until_s"),
        *_fields("double", "preempted_s"),
        *_SPECULATED,
        *_fields("string", "finish_reason"),
        *_fields("bool", "slo_met"),
        *_fields("string", "prompt_sha256 output_sha256"),
    ]
)
STEPS = pa.schema(
    [
        *_fields("int64", "schema_version"),
        *_fields("string", "run_id"),
        *_fields("int64", "step"),
        # client_s: since the end of the step before, outside of the engine; null for the first.
        # device_s: the device's own time; where steps overlap, of the step that was waited for in this one.
        *_fields("double", "start_s duration_s schedule_s run_s commit_s client_s device_s"),
        # Decode tokens are the requests' own, one each; what was drafted stands beside them, null where speculation is
        # off. verify_s: all of the step but drafting and the host's work; both null where nothing was drafted.
        *_fields(
            "int64", "num_prefill_tokens num_decode_tokens num_draft_tokens num_accepted_tokens num_verifications"
        ),
        *_fields("double", "draft_s verify_s"),
        # Of `simulation.base.StepWork`: requests that prefill, what the last token of each request sees, of all and of
        # those that prefill, and (token, key) pairs of all.
        *_fields("int64", "num_prefill_requests num_context_tokens num_prefill_context_tokens num_query_key_pairs"),
        # K/V blocks that moved between device and host.
        *_fields("int64", "num_swapped_blocks"),
        *_fields("int64", "num_running num_waiting kv_blocks_used kv_blocks_cached num_evictions num_preemptions"),
        # Slots of used blocks without K/V; used of all blocks; unused of the slots of used blocks.
        *_fields("int64", "kv_slots_unused"),
        *_fields("double", "kv_utilization_fraction kv_fragmentation_fraction"),
        # Resident memory, looked at every hundredth of a second at most; null in the steps between.
        *_fields("int64", "process_bytes counted_bytes counted_flops"),
        *_fields("int64", "num_compilations"),
    ]
)
QUALITY = pa.schema(
    [
        *_fields("int64", "schema_version"),
        # kind: text (a window), generation (a prompt), task (an identifier to complete); see `quality.rows`.
        *_fields("string", "run_id item_id kind"),
        *_fields("int64", "num_tokens"),
        *_fields("double", "nll_sum_nats kl_sum_nats"),
        *_fields("int64", "top1_matches top1_flips token_matches first_divergence"),
        *_fields("string", "task"),
        *_fields("bool", "task_correct"),
        *_fields("string", "task_expected task_answer"),
    ]
)
SCHEMAS = dict(zip(TABLES, (RUNS, REQUESTS, STEPS, QUALITY), strict=True))


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """`cfg.*` columns of a resolved config: scalars by dotted key, lists as JSON, and the chosen members."""
    flat: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, (list, tuple)) else value

    walk({k: v for k, v in config.items() if k not in ("choices", "sweep", "tracking", "launcher")}, "cfg.")
    members = {k: v for k, v in config["choices"].items() if k not in ("tracking", "launcher", "experiment")}
    walk(members, "cfg.")
    return flat


def column_types(configs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """One type a `cfg.*` column for all points of a sweep, by the rule of this module's docstring."""
    kinds: dict[str, set[str]] = {}
    for config in configs:
        for name, value in flatten(config).items():
            kinds.setdefault(name, set()).add(_kind(value))
    return {name: _common(found - {"null"}) for name, found in sorted(kinds.items())}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64"
    return "double" if isinstance(value, float) else "string"


def _common(kinds: set[str]) -> str:
    if not kinds:
        return "null"
    if kinds == {"int64", "double"}:
        return "double"
    return kinds.pop() if len(kinds) == 1 else "json"


def runs_table(row: Mapping[str, Any], config: Mapping[str, Any], types: Mapping[str, str]) -> pa.Table:
    """The one-row table of a run.

    Args:
        row: columns of `RUNS`; those left out are null.
        config: resolved.
        types: of the `cfg.*` columns, from `column_types`.
    """
    unknown = set(row) - set(RUNS.names)
    assert not unknown, f"no such columns: {unknown}"
    return table_with_config({**row, "schema_version": SCHEMA_VERSION}, RUNS, config, types)


def table_with_config(
    row: Mapping[str, Any], schema: pa.Schema, config: Mapping[str, Any], types: Mapping[str, str]
) -> pa.Table:
    """One row, and the `cfg.*` columns of its config behind it. Args: as `runs_table`."""
    flat = flatten(config)
    columns = {name: row.get(name) for name in schema.names}
    for name, kind in types.items():
        value = flat.get(name)
        if kind == "json" and value is not None:
            value = value if isinstance(value, str) else json.dumps(value)
        columns[name] = float(value) if kind == "double" and value is not None else value
        schema = schema.append(pa.field(name, _TYPES["string" if kind == "json" else kind]))
    return pa.Table.from_pylist([columns], schema=schema)


def rows_table(table: str, run_id: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of many rows; `run_id` and `schema_version` are filled in."""
    head = {"schema_version": SCHEMA_VERSION, "run_id": run_id}
    return pa.Table.from_pylist([{**row, **head} for row in rows], schema=SCHEMAS[table])


def write_table(path: Path, table: pa.Table) -> None:
    """Write to a temporary name in the same folder, flush to the disk, rename. Whoever looks sees all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            # A dictionary of one value is a page more in each column: a quarter of the time that reading takes.
            pq.write_table(table, file, use_dictionary=table.num_rows > 1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """As `write_table`, for text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_table(path: Path) -> pa.Table:
    """One file, by itself: without the guesses that a folder's name invites.

    Raises:
        OSError, pyarrow.ArrowException: there is none, or it is no parquet file.
    """
    with open(path, "rb") as file:
        return pq.ParquetFile(file).read()
