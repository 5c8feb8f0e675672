"""Past-Future admission (Gong et al., "Past-Future scheduler for LLM serving under SLA guarantees", ASPLOS 2025, arXiv
2507.10150; LightLLM): a request is let in only while the K/V of all is predicted to fit at its future peak.

Past: output lengths of the requests that ended last are the distribution from which each running request's is drawn,
given that it is longer than what was said. Future: memory is at its peak at the moment before some request ends. With
requests in the order of who runs longest, contexts c_j, and r_j tokens still to come, that peak is
max over i of sum_{j <= i} c_j + i * r_i.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence

from minivllm.component import is_count, require
from minivllm.request import RequestView
from minivllm.scheduler.base import KeyChanges, SchedulerState, SchedulingPolicy
from minivllm.scheduler.chance import uniform


def peak_tokens(requests: Sequence[tuple[int, int]]) -> int:
    """Most K/V tokens that are held at once, if nobody else is let in.

    Args:
        requests: (tokens of context, tokens still to come) of each.
    """
    held = peak = 0
    for count, (context, left) in enumerate(sorted(requests, key=lambda each: -each[1]), start=1):
        held += context
        peak = max(peak, held + count * left)
    return peak


class PastFuture(SchedulingPolicy):
    """First come, first served, with admission by predicted peak.

    A request's place in the distribution is drawn once, as a hash of (seed, request). `max_tokens` is not looked at: of
    a replayed trace it is the very answer.

    Args:
        window: requests that ended last, of whose lengths the distribution is made.
        prior_tokens: the one length that is known before the first request has ended.
        reserved_fraction: of the pool, kept free of predictions, for the lengths that were drawn too short.
        seed: of the draws.
    """

    key_changes = KeyChanges.NEVER

    def __init__(
        self, window: int = 1000, prior_tokens: int = 256, reserved_fraction: float = 0.05, seed: int = 0
    ) -> None:
        require(is_count(window), "scheduler.window", window, "1 or more")
        require(is_count(prior_tokens), "scheduler.prior_tokens", prior_tokens, "1 or more")
        valid = isinstance(reserved_fraction, (int, float)) and 0 <= reserved_fraction < 1
        require(valid, "scheduler.reserved_fraction", reserved_fraction, "in [0, 1)")
        self._reserved_fraction = reserved_fraction
        self._seed = seed
        self._window = window
        self._history = deque([prior_tokens])
        self._sorted = [prior_tokens]

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        everyone = super().order(state, now_s)
        running, waiting = everyone[: len(state.running)], everyone[len(state.running) :]
        if not waiting:
            return running
        # Up to one block but one token of a request's last block is nobody's.
        slack = state.block_size - 1
        limit = (1 - self._reserved_fraction) * state.num_blocks * state.block_size
        held = [(request.num_tokens + slack, self._left(request)) for request in running]
        let_in: list[RequestView] = []
        for request in waiting[: state.max_num_seqs - len(running)]:
            held.append((request.num_tokens + slack, self._left(request)))
            # Alone, a request always fits.
            if len(held) > 1 and peak_tokens(held) > limit:
                break
            let_in.append(request)
        return [*running, *let_in]

    def _left(self, request: RequestView) -> int:
        """Tokens still to come: the drawn one of the lengths beyond what was said, or as much again beyond them all."""
        said, lengths = request.num_output_tokens, self._sorted
        first = bisect_right(lengths, said)
        if first == len(lengths):
            return said
        return lengths[first + int(uniform(self._seed, request.request_id) * (len(lengths) - first))] - said

    def on_finish(self, request: RequestView, now_s: float) -> None:
        if request.num_output_tokens == 0:
            return
        self._history.append(request.num_output_tokens)
        insort(self._sorted, request.num_output_tokens)
        if len(self._history) > self._window:
            self._sorted.pop(bisect_right(self._sorted, self._history.popleft()) - 1)
