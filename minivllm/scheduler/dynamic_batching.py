"""Dynamic batching: wait for a fuller batch, or go now? A batch starts when enough requests wait or the oldest of them
has waited long enough, and then it runs to its end: TensorFlow Serving's BatchingSession (`max_batch_size`,
`batch_timeout_micros`; arXiv 1712.06139) and the dynamic batcher of NVIDIA's Triton server (`preferred_batch_size`,
`max_queue_delay_microseconds`)."""

from __future__ import annotations

from minivllm.component import is_count, require
from minivllm.scheduler.base import SchedulerState
from minivllm.scheduler.static import StaticBatching


class DynamicBatching(StaticBatching):
    """Static batches that wait for company.

    Args:
        min_requests: that must wait before a batch starts; a batch that fills all seats never waits for more.
        max_wait_s: after its arrival, a request waits no longer for others.
    """

    def __init__(self, min_requests: int = 8, max_wait_s: float = 0.1) -> None:
        require(is_count(min_requests), "scheduler.min_requests", min_requests, "1 or more")
        valid = isinstance(max_wait_s, (int, float)) and max_wait_s >= 0
        require(valid, "scheduler.max_wait_s", max_wait_s, "0 or more")
        self._min_requests = min_requests
        self._max_wait_s = max_wait_s

    def wait_until_s(self, state: SchedulerState, now_s: float) -> float | None:
        if state.running or len(state.waiting) >= min(self._min_requests, state.max_num_seqs):
            return None
        until_s = min(request.arrival_s for request in state.waiting) + self._max_wait_s
        return until_s if until_s > now_s else None
