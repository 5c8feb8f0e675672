"""What the tables hold, as the results contract names it: tables, their columns, and the ways a run can end.

The columns are written out here, and not imported from whoever writes them, because results outlive the code that
wrote them. A column that a file lacks reads as null; a column that is not named here is kept as it is.
"""

from __future__ import annotations

LATENCIES = ("ttft", "tpot", "itl", "e2e", "queue")

_RUNS = (
    "schema_version sweep run_id point_id repeat order_index design.order design.order_seed "
    "design.min_repeats design.max_repeats design.repeat_metric design.relative_half_width design.cool_down_s "
    "design.launcher design.num_at_once "
    "status error_type error_message started_at wall_s "
    "workload_sha256 num_requests num_prompt_tokens num_output_tokens duration_s "
    "request_throughput_rps output_throughput_tps total_throughput_tps "
    + " ".join(f"{name}_{part}_s" for name in LATENCIES for part in ("mean", "p50", "p90", "p99"))
    + " goodput_rps slo_attainment_fraction "
    "weights_bytes kv_cache_bytes peak_allocated_bytes peak_reserved_bytes peak_process_bytes "
    "quantization num_quantized_weights quantized_bytes bits_per_weight "
    "kv_blocks_total kv_utilization_mean_fraction kv_fragmentation_mean_fraction prefix_hit_fraction "
    "num_evictions num_preemptions num_recomputed_tokens "
    "simulated step_time_model hardware step_time_error_fraction offered_rate_rps arrival_lateness_p99_s "
    "num_waiting_mean service_gap_max_tokens jain_fairness_fraction fluidity_mean_fraction num_swapped_blocks "
    "num_verifications num_draft_tokens num_accepted_tokens acceptance_rate acceptance_length "
    "proposed_by_position evaluated_by_position accepted_by_position "
    "draft_time_fraction verify_time_fraction text_valid "
    "energy_j energy_per_output_token_j cost_per_million_output_tokens energy_source kernels mbu_fraction mfu_fraction "
    "counted_bytes counted_flops step_schedule_mean_s step_run_mean_s step_commit_mean_s step_client_mean_s "
    "host_fraction step_device_mean_s device_idle_fraction num_compilations "
    "perplexity kl_mean_nats top1_agreement_fraction token_agreement_fraction "
    "top1_flip_fraction task_score_fraction task_flip_fraction first_divergence_mean_tokens quality_num_tokens"
)
_REQUESTS = (
    "run_id request_id warmup client_id arrival_s first_scheduled_s first_token_s finish_s ttft_s tpot_s e2e_s queue_s "
    "num_prompt_tokens num_output_tokens num_cached_tokens num_preemptions "
    "priority predicted_output_tokens num_recomputed_tokens itl_max_s fluidity_fraction preempted_s "
    "preempted_from_s preempted_until_s "
    "num_verifications num_draft_tokens num_accepted_tokens acceptance_rate acceptance_length "
    "proposed_by_position evaluated_by_position accepted_by_position "
    "finish_reason slo_met prompt_sha256 output_sha256"
)
_STEPS = (
    "run_id step start_s duration_s schedule_s run_s commit_s client_s device_s num_prefill_tokens num_decode_tokens "
    "num_draft_tokens num_accepted_tokens num_verifications draft_s verify_s num_running num_waiting kv_blocks_used "
    "kv_blocks_cached num_evictions num_preemptions kv_slots_unused kv_utilization_fraction kv_fragmentation_fraction "
    "process_bytes counted_bytes counted_flops num_compilations "
    "num_context_tokens num_prefill_context_tokens num_query_key_pairs num_prefill_requests num_swapped_blocks"
)
_QUALITY = (
    "run_id item_id kind num_tokens nll_sum_nats kl_sum_nats top1_matches top1_flips token_matches first_divergence "
    "task task_correct task_expected task_answer"
)

TABLES: dict[str, tuple[str, ...]] = {
    "runs": tuple(_RUNS.split()),
    "requests": tuple(_REQUESTS.split()),
    "steps": tuple(_STEPS.split()),
    "quality": tuple(_QUALITY.split()),
}

# What the columns of schedulers hold, by table; units are those of the name.
DESCRIPTIONS: dict[str, dict[str, str]] = {
    "runs": {
        "simulated": "Whether a step-time model stood in for the device and a virtual clock for the wall's.",
        "step_time_model": "Which model of step times, where simulated.",
        "hardware": "Which machine it is a model of.",
        "step_time_error_fraction": "Mean relative error of the fitted model on steps that it was not fitted on.",
        "offered_rate_rps": "Requests offered a second, whether or not they could be served.",
        "arrival_lateness_p99_s": "How late the client sent requests: 99 % were this late or less.",
        "num_waiting_mean": "Requests waiting, mean over time.",
        "service_gap_max_tokens": "Largest difference in weighted tokens of service that two clients got while both "
        "had requests waiting or running.",
        "jain_fairness_fraction": "Jain's index of the clients' service rates: 1 is equal shares, 1 over the number of "
        "clients is all for one.",
        "fluidity_mean_fraction": "Share of tokens that came by their deadline, early ones lending their slack to "
        "later ones; mean over requests.",
        "num_swapped_blocks": "KV blocks copied between the device and the host because of preemptions.",
        "num_recomputed_tokens": "Tokens whose K/V was computed again after a preemption.",
    },
    "requests": {
        "priority": "As the client gave it.",
        "predicted_output_tokens": "What the length predictor said when the request arrived.",
        "num_recomputed_tokens": "Tokens whose K/V was computed again after its preemptions.",
        "itl_max_s": "Its longest wait between two tokens.",
        "fluidity_fraction": "Share of its tokens that came by their deadline.",
        "preempted_s": "Time that it waited after preemptions.",
        "preempted_from_s": "When each wait after a preemption began, from the start of the measurement.",
        "preempted_until_s": "When each ended.",
    },
    "steps": {
        "num_context_tokens": "Tokens in the K/V cache that the step's requests read, prefill and decode together.",
        "num_prefill_context_tokens": "The same of those in prefill.",
        "num_query_key_pairs": "Pairs of query and key that attention computes, prefill and decode together.",
        "num_prefill_requests": "Requests of the step that computed tokens of their prompt.",
        "num_swapped_blocks": "KV blocks that the step copied between the device and the host.",
    },
}

OK = "ok"
STATUSES = (OK, "error", "crashed", "timeout", "invalid")

# A run within several sweeps: `run_id` is a hash of the config, so two sweeps may hold the same one.
RUN_KEY = ["sweep", "run_id"]
POINT_KEY = ["sweep", "point_id"]
