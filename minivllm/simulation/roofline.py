"""Step times from first principles: what a step must move and compute, over what the hardware can.

A step's parts run one after the other, and each takes the longer of its bytes and its FLOPs:

    layers      weights once              2 FLOPs a weight and token
    head        its weights once          2 FLOPs a weight and sampled token
    prefill     contexts' K/V once        4 D FLOPs a head and (query, key) pair
    decode      contexts' K/V once        the same

The counts are those of `experiments/roofline.py`, which holds a real run against the same ceilings. The fractions of
the ceilings that kernels reach, what a launch costs and what the host does are the hardware's (`hardware`).
With a sliding window a request sees at most the window: exact where all contexts lie on one side of it.
"""

from __future__ import annotations

from collections import Counter

from minivllm.simulation.base import StepTimeTarget, StepWork


class Roofline:
    """The device's time by its parts; beside the host's where steps overlap, else behind it.

    Args:
        target: the engine and the hardware.

    Raises:
        ValueError: the hardware has no peak for the precision.
    """

    def __init__(self, *, target: StepTimeTarget) -> None:
        spec, sizes, hardware = target.spec, target.sizes, target.hardware
        self._overlaps = target.config.overlaps
        self._hardware = hardware
        bandwidth = hardware.bandwidth_bytes_per_s
        linear_bandwidth = bandwidth * hardware.linear_bandwidth_fraction
        attention_bandwidth = bandwidth * hardware.attention_bandwidth_fraction
        product_flops = hardware.peak_flops_per_s(sizes.product_dtype) * hardware.linear_flops_fraction
        head_flops = hardware.peak_flops_per_s(sizes.dtype) * hardware.linear_flops_fraction
        attention_flops = hardware.peak_flops_per_s(sizes.dtype) * hardware.attention_flops_fraction

        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        projections = spec.hidden_size * (2 * q_size + 2 * kv_size + 3 * spec.intermediate_size)
        self._layers_s = sizes.layers_bytes / linear_bandwidth
        self._layers_token_s = 2 * spec.num_layers * projections / product_flops
        self._row_s = sizes.row_bytes / linear_bandwidth
        self._head_s = sizes.head_bytes / linear_bandwidth
        self._head_token_s = 2 * spec.hidden_size * spec.vocab_size / head_flops
        # Of one layer.
        self._kv_s = sizes.kv_token_bytes / spec.num_layers / attention_bandwidth
        self._pair_s = 4 * q_size / attention_flops
        # (window, layers that have it)
        self._windows = tuple(Counter(spec.sliding_windows).items())
        self._overhead_s = hardware.step_overhead_s + spec.num_layers * hardware.layer_overhead_s
        block_bytes = sizes.kv_token_bytes * target.config.cache.block_size
        self._swap_s = block_bytes / hardware.host_link_bytes_per_s

    def step_s(self, work: StepWork) -> float:
        hardware = self._hardware
        num_requests = work.num_prefill_requests + work.num_decode_tokens
        host_s = hardware.host_step_s + hardware.host_request_s * num_requests
        device_s = self.device_s(work)
        return max(host_s, device_s) if self._overlaps else host_s + device_s

    def device_s(self, work: StepWork) -> float:
        """Of the device alone."""
        swap_s = work.num_swapped_blocks * self._swap_s
        num_tokens = work.num_tokens
        if not num_tokens:
            return swap_s
        total_s = swap_s + self._overhead_s + num_tokens * self._row_s
        total_s += max(self._layers_s, num_tokens * self._layers_token_s)
        if work.num_sampled_tokens:
            total_s += max(self._head_s, work.num_sampled_tokens * self._head_token_s)
        for window, num_layers in self._windows:
            decoded = work.num_decode_context_tokens
            seen, pairs = work.num_prefill_context_tokens, work.num_prefill_pairs
            if window is not None:
                decoded = min(decoded, work.num_decode_tokens * window)
                # A chunk sees the window before its first token, and itself.
                seen = min(seen, work.num_prefill_requests * window + work.num_prefill_tokens)
                pairs = min(pairs, work.num_prefill_tokens * window)
            # Contexts are read, and the K/V of new tokens written.
            prefill_bytes_s = (seen + work.num_prefill_tokens) * self._kv_s
            decode_bytes_s = (decoded + work.num_decode_tokens) * self._kv_s
            total_s += num_layers * max(prefill_bytes_s, pairs * self._pair_s)
            total_s += num_layers * max(decode_bytes_s, decoded * self._pair_s)
        return total_s
