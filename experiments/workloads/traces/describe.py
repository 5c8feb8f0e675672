"""A trace in ten numbers, before anything is run on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from experiments.workloads.traces.base import TraceRow


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceSummary:
    """What a trace asks for; None where it does not say, or where there are too few rows.

    Args:
        num_requests: all of them, failed ones too.
        num_failed: without a prompt or an output.
        duration_s: from the first arrival to the last.
        rate_rps: mean, gaps over duration.
        gap_cv: coefficient of variation of the gaps between arrivals: 1 is as of a Poisson process, more is bursty.
        prompt_tokens_mean, prompt_tokens_p99, output_tokens_mean, output_tokens_p99: of requests that did not fail
            and whose length is known; the 99th percentile is the smallest length that 99 % do not exceed.
        repeated_prefix_fraction: share of the prompt tokens that begin a prompt as an earlier one began, of rows with
            `hash_ids`. No prefix cache can hit more.
    """

    num_requests: int
    num_failed: int
    duration_s: float | None
    rate_rps: float | None
    gap_cv: float | None
    prompt_tokens_mean: float | None
    prompt_tokens_p99: int | None
    output_tokens_mean: float | None
    output_tokens_p99: int | None
    repeated_prefix_fraction: float | None


def describe(rows: Iterable[TraceRow], *, hash_block_tokens: int = 512) -> TraceSummary:
    """Summary of a trace, in one pass; memory grows with different lengths and block names, not with rows.

    Args:
        rows: such as `read_trace(path)`.
        hash_block_tokens: of a block of `hash_ids`.
    """
    prompts: Counter[int] = Counter()
    outputs: Counter[int] = Counter()
    prefixes = _Prefixes(hash_block_tokens)
    num_requests = num_failed = 0
    first_s = last_s = squares = 0.0
    for row in rows:
        if num_requests == 0:
            first_s = last_s = row.arrival_s
        squares += (row.arrival_s - last_s) ** 2
        last_s = row.arrival_s
        num_requests += 1
        if row.num_prompt_tokens == 0 or row.num_output_tokens == 0:
            num_failed += 1
            continue
        outputs[row.num_output_tokens] += 1
        if row.num_prompt_tokens is not None:
            prompts[row.num_prompt_tokens] += 1
            if row.hash_ids is not None:
                prefixes.add(row.hash_ids, row.num_prompt_tokens)
    num_gaps, duration_s = num_requests - 1, last_s - first_s
    spread = duration_s > 0
    return TraceSummary(
        num_requests=num_requests,
        num_failed=num_failed,
        duration_s=duration_s if num_requests else None,
        rate_rps=num_gaps / duration_s if spread else None,
        gap_cv=math.sqrt(max(0.0, squares * num_gaps / duration_s**2 - 1)) if spread else None,
        prompt_tokens_mean=_mean(prompts),
        prompt_tokens_p99=_p99(prompts),
        output_tokens_mean=_mean(outputs),
        output_tokens_p99=_p99(outputs),
        repeated_prefix_fraction=prefixes.num_repeated / prefixes.num_tokens if prefixes.num_tokens else None,
    )


class _Prefixes:
    """A tree of all prompts so far, a node for each block behind each other one."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        # (node before, id of the block) -> node, and the most tokens of the block that a prompt had.
        self._nodes: dict[tuple[int, int], tuple[int, int]] = {}
        self.num_tokens = self.num_repeated = 0

    def add(self, hash_ids: tuple[int, ...], num_prompt_tokens: int) -> None:
        self.num_tokens += num_prompt_tokens
        before, left = 0, num_prompt_tokens
        for hash_id in hash_ids:
            mine = max(0, min(left, self._block_tokens))
            node, most = self._nodes.get((before, hash_id), (len(self._nodes) + 1, 0))
            self._nodes[before, hash_id] = (node, max(most, mine))
            # Behind a block that nobody had so far there are only new nodes.
            self.num_repeated += min(most, mine)
            before, left = node, left - mine


def _mean(lengths: Counter[int]) -> float | None:
    count = lengths.total()
    return sum(length * times for length, times in lengths.items()) / count if count else None


def _p99(lengths: Counter[int]) -> int | None:
    rank = math.ceil(0.99 * lengths.total())
    for length in sorted(lengths):
        rank -= lengths[length]
        if rank <= 0:
            return length
    return None
