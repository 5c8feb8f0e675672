"""Files cut at a random line, to be gone on with: the job that the shipped model was trained for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from experiments.workloads.base import Streams, WorkloadBase, WorkloadItem
from experiments.workloads.prompts import PromptSource


@dataclass(frozen=True, kw_only=True)
class CodeCompletion(WorkloadBase):
    """The last `max_prompt_tokens` tokens before the cut, or the whole beginning where it is shorter.

    Args:
        num_requests: in all.
        max_prompt_tokens: longest prompt.
        max_tokens: output length of each.
    """

    num_requests: int
    max_prompt_tokens: int
    max_tokens: int

    def __post_init__(self) -> None:
        WorkloadBase.__post_init__(self)
        self.require_counts("num_requests", "max_tokens")
        self.require_counts("max_prompt_tokens", least=2)

    def items(self, streams: Streams, source: PromptSource) -> Iterable[WorkloadItem]:
        return (
            WorkloadItem(
                prompt_token_ids=source.to_complete(self.max_prompt_tokens, streams.prompts),
                max_tokens=self.max_tokens,
                arrival_s=arrival_s,
            )
            for arrival_s in self.draw_arrivals(self.num_requests, streams)
        )
