"""A fixed number of clients, each of which sends its next request when its last one is done: throughput under a
steady load, with no queue to speak of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from experiments.workloads.base import Streams, WorkloadBase, WorkloadItem
from experiments.workloads.prompts import PromptSource


@dataclass(frozen=True, kw_only=True)
class ClosedLoop(WorkloadBase):
    """Unrelated prompts.

    Args:
        num_requests: in all.
        min_prompt_tokens, max_prompt_tokens: prompt lengths, uniform.
        min_output_tokens, max_output_tokens: output lengths, uniform.
    """

    num_requests: int
    min_prompt_tokens: int
    max_prompt_tokens: int
    min_output_tokens: int
    max_output_tokens: int

    def __post_init__(self) -> None:
        WorkloadBase.__post_init__(self)
        self.require_counts("num_requests")
        self.require_range("prompt_tokens")
        self.require_range("output_tokens")

    def items(self, streams: Streams, source: PromptSource) -> Iterable[WorkloadItem]:
        prompt_lengths = self.draw_lengths("prompt_tokens", self.num_requests, streams)
        output_lengths = self.draw_lengths("output_tokens", self.num_requests, streams)
        arrivals = self.draw_arrivals(self.num_requests, streams)
        return (
            WorkloadItem(
                prompt_token_ids=source.tokens(num_prompt, streams.prompts),
                max_tokens=num_output,
                arrival_s=arrival_s,
            )
            for num_prompt, num_output, arrival_s in zip(prompt_lengths, output_lengths, arrivals, strict=True)
        )
