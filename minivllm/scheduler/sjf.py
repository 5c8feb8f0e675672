"""Shortest job first, not preemptive: the request whose answer is predicted to be the shortest is let in next, and then
it runs to its end (Smith, "Various optimizers for single-stage production", 1956; of LLM serving: arXiv 2408.15792)."""

from __future__ import annotations

from minivllm.request import RequestView
from minivllm.scheduler.base import KeyChanges, SchedulingPolicy


class ShortestJobFirst(SchedulingPolicy):
    """By the whole predicted output; `length_predictor` says who predicts."""

    # A predictor that refines changes its word while the request runs, and only then.
    key_changes = KeyChanges.WHEN_SERVED

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (request.predicted_output_tokens, request.arrival_s, request.request_id)
