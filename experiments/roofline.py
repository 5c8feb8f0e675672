"""What a step must move and compute, counted from its chunks; achieved over measured peak is MBU and MFU.

A step with chunks [start, start + n) of requests, N tokens in all and M of them read by the head, in a model of L
layers, hidden size C, H query and K key/value heads of size D, feed-forward size I and V words:

    flops = 2 N L (C (H + 2 K) D + H D C + 3 C I)       products with the layers' weights
          + 2 M C V                                     the head, of tokens that are sampled or verified
          + 4 H D * sum over layers and tokens of the keys that the token sees       scores, and sums of values
    bytes = layers' weights as stored, once             however many tokens share them
          + head as stored, once, where M > 0           + N rows of the embedding
          + K/V of every chunk's context, once          + K/V of its n new tokens, written

A token at position p sees min(p + 1, window) keys. Drafts that are verified are tokens like any other, whether they are
accepted or not, and those of a tree count as if they were a chain, a few keys too many. What a drafter itself computes
is not counted: with speculation both fractions are the target's work over the time of the two. Activations, norms,
sampling and the index arithmetic are not counted either: they are what an ideal kernel would keep on the chip. Both
fractions are over the time inside of engine steps, so an open loop that waits for requests is not blamed for it. The
peak of bandwidth is that of copying memory, so a model that fits into a cache can go beyond 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minivllm.models.spec import ModelSpec
from minivllm.plan import Chunk
from minivllm.runner.base import MemoryReport, Runner


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Of one step."""

    num_bytes: int
    num_flops: int


class Roofline:
    """Counts steps of one model.

    Args:
        spec: its shape.
        layers_bytes: weights of all layers and norms, as stored.
        head_bytes: of the head, as stored.
        row_bytes: one row of the embedding.
        kv_token_bytes: K and V of one token in all layers, scales included.
    """

    def __init__(
        self, spec: ModelSpec, *, layers_bytes: int, head_bytes: int, row_bytes: int, kv_token_bytes: float
    ) -> None:
        self._layers_bytes, self._head_bytes, self._row_bytes = layers_bytes, head_bytes, row_bytes
        self._kv_layer_bytes = kv_token_bytes / spec.num_layers
        self._num_layers = spec.num_layers
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        attention = spec.hidden_size * (q_size + 2 * kv_size) + q_size * spec.hidden_size
        self._token_flops = 2 * spec.num_layers * (attention + 3 * spec.hidden_size * spec.intermediate_size)
        self._sample_flops = 2 * spec.hidden_size * spec.vocab_size
        self._pair_flops = 4 * q_size
        # (window, layers that have it)
        self._windows = tuple(Counter(spec.sliding_windows).items())

    @classmethod
    def of(cls, runner: Runner, memory: MemoryReport, block_size: int) -> Roofline | None:
        """Of what a runner runs; None where that is no model of ours, such as a simulation."""
        model = getattr(runner, "model", None)
        if model is None:
            return None
        # It imports torch, which a simulation has no need of.
        from minivllm.models.llama import Llama

        if not isinstance(model, Llama):
            return None
        return cls(
            model.spec,
            layers_bytes=sum(layer.weight_bytes for layer in model.layers) + model.norm.weight_bytes,
            head_bytes=model.lm_head.weight_bytes,
            row_bytes=model.spec.hidden_size * model.dtype.itemsize,
            kv_token_bytes=memory.kv_cache_bytes / (runner.num_blocks * block_size),
        )

    def count(self, chunks: Sequence[Chunk], drafted: Mapping[int, int] | None = None) -> Work:
        """The work of a step.

        Args:
            chunks: of its plan.
            drafted: request id to the drafts that were verified behind its chunk.
        """
        if not chunks:
            return Work(num_bytes=0, num_flops=0)
        drafted = drafted or {}
        num_tokens = num_sampled = 0
        for chunk in chunks:
            num_drafts = drafted.get(chunk.request_id, 0)
            num_tokens += chunk.num_tokens + num_drafts
            num_sampled += chunk.samples + num_drafts
        kv_bytes, num_pairs = self._num_layers * num_tokens * self._kv_layer_bytes, 0
        for window, num_layers in self._windows:
            for chunk in chunks:
                seen, pairs = attended(chunk.start, chunk.num_tokens + drafted.get(chunk.request_id, 0), window)
                kv_bytes += num_layers * seen * self._kv_layer_bytes
                num_pairs += num_layers * pairs
        head_bytes = self._head_bytes if num_sampled else 0
        return Work(
            num_bytes=round(self._layers_bytes + head_bytes + num_tokens * self._row_bytes + kv_bytes),
            num_flops=self._token_flops * num_tokens + self._sample_flops * num_sampled + self._pair_flops * num_pairs,
        )


def attended(start: int, num_tokens: int, window: int | None) -> tuple[int, int]:
    """Of the tokens [start, start + num_tokens): how many keys at least one of them sees, and how many (token, key)
    pairs there are."""
    end = start + num_tokens
    if window is None or end <= window:
        return end, num_tokens * start + num_tokens * (num_tokens + 1) // 2
    # Tokens whose context is not cut yet.
    whole = max(0, window - start)
    pairs = whole * start + whole * (whole + 1) // 2 + (num_tokens - whole) * window
    return min(end, window + num_tokens - 1), pairs


def fractions(
    num_bytes: float | None, num_flops: float | None, busy_s: float, bandwidth: float | None, flops_per_s: float | None
) -> dict[str, Any]:
    """MBU and MFU; null where a peak is unknown or nothing ran."""
    return {
        "mbu_fraction": num_bytes / busy_s / bandwidth if num_bytes and bandwidth and busy_s else None,
        "mfu_fraction": num_flops / busy_s / flops_per_s if num_flops and flops_per_s and busy_s else None,
    }
