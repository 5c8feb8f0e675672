"""Longest prefix match: SGLang's cache-aware order (RadixAttention, arXiv 2312.07104, section 3). The request with the
longest cached prefix goes first, so that a prefix is used while it is there; offline it walks the tree of prefixes
depth first, which is the best that a cache as large as the longest request can be used (theirs, theorem 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulerState, SchedulingPolicy


class LongestPrefixMatch(SchedulingPolicy):
    """Running requests first, then those with the most cached tokens, and among equals first come, first served.

    Requests without a prefix in the cache starve while others keep coming.
    """

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        running = sorted(state.running, key=lambda request: self.key(request, now_s))
        if len(running) >= state.max_num_seqs:
            return running
        num_cached_tokens = state.num_cached_tokens
        assert num_cached_tokens is not None, "the scheduler shows its cache"
        by_match = sorted(state.waiting, key=lambda request: (-num_cached_tokens(request), *self.key(request, now_s)))
        return [*running, *by_match]
