"""Requests that begin with one of a few long prefixes, as with system prompts and few-shot examples: what a prefix
cache is for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from experiments.workloads.base import Streams, WorkloadBase, WorkloadItem
from experiments.workloads.draws import endless
from experiments.workloads.prompts import PromptSource


@dataclass(frozen=True, kw_only=True)
class SharedPrefix(WorkloadBase):
    """A prefix, chosen at random, then a suffix of its own.

    Args:
        num_requests: in all.
        num_prefixes: different prefixes; a request's `client_id` is its prefix.
        prefix_tokens: length of each.
        min_suffix_tokens, max_suffix_tokens: lengths of the suffixes, uniform.
        min_output_tokens, max_output_tokens: output lengths, uniform.
    """

    num_requests: int
    num_prefixes: int
    prefix_tokens: int
    min_suffix_tokens: int
    max_suffix_tokens: int
    min_output_tokens: int
    max_output_tokens: int

    def __post_init__(self) -> None:
        WorkloadBase.__post_init__(self)
        self.require_counts("num_requests", "num_prefixes", "prefix_tokens")
        self.require_range("suffix_tokens")
        self.require_range("output_tokens")

    def items(self, streams: Streams, source: PromptSource) -> Iterable[WorkloadItem]:
        prefixes = [source.tokens(self.prefix_tokens, streams.prompts) for _ in range(self.num_prefixes)]
        chosen = islice(endless(lambda size: streams.order.integers(self.num_prefixes, size=size)), self.num_requests)
        suffix_lengths = self.draw_lengths("suffix_tokens", self.num_requests, streams)
        output_lengths = self.draw_lengths("output_tokens", self.num_requests, streams)
        arrivals = self.draw_arrivals(self.num_requests, streams)
        return (
            WorkloadItem(
                prompt_token_ids=prefixes[prefix] + source.tokens(num_suffix, streams.prompts, start=False),
                max_tokens=num_output,
                arrival_s=arrival_s,
                client_id=prefix,
            )
            for prefix, num_suffix, num_output, arrival_s in zip(
                chosen, suffix_lengths, output_lengths, arrivals, strict=True
            )
        )
