"""Shortest remaining processing time, preemptive: the least mean latency that an order can give one server that knows
the lengths (Schrage, "A proof of the optimality of the shortest remaining processing time discipline", Operations
Research 1968). With `length_predictor=oracle` it is the bound; with a prediction that is refined as the request talks
it is TRAIL (arXiv 2410.01035)."""

from __future__ import annotations

from minivllm.component import require
from minivllm.request import RequestView
from minivllm.scheduler.base import KeyChanges, SchedulingPolicy
from minivllm.scheduler.remaining import remaining_output_tokens


class ShortestRemaining(SchedulingPolicy):
    """Serve the request with the least predicted output left. The long starve while short ones keep coming.

    Args:
        preemptible_fraction: a request that has said this fraction of its prediction is put before all that have not,
            so that nobody is put out shortly before the end, with the most K/V to lose (TRAIL's limited preemption, its
            `c`); null lets everybody be put out at any time.
    """

    preemptive = True
    key_changes = KeyChanges.WHEN_SERVED

    def __init__(self, preemptible_fraction: float | None = None) -> None:
        valid = isinstance(preemptible_fraction, (int, float)) and 0 < preemptible_fraction <= 1
        require(
            preemptible_fraction is None or valid,
            "scheduler.preemptible_fraction",
            preemptible_fraction,
            "null or in (0, 1]",
        )
        self._preemptible_fraction = preemptible_fraction

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        left, fraction = remaining_output_tokens(request), self._preemptible_fraction
        said = request.num_output_tokens
        can_be_put_out = fraction is None or said < fraction * (said + left)
        return (can_be_put_out, left, request.arrival_s, request.request_id)
