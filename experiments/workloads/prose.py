"""Prose to be gone on with: text of another kind than code, by the same model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from experiments.workloads.base import Streams, WorkloadItem
from experiments.workloads.code_completion import CodeCompletion
from experiments.workloads.prompts import PromptSource


@dataclass(frozen=True, kw_only=True)
class Prose(CodeCompletion):
    """Paragraphs of the docstrings and comments of a file, the last of them cut within: the last `max_prompt_tokens`
    tokens before the cut.

    Its fields are those of `CodeCompletion`.
    """

    def items(self, streams: Streams, source: PromptSource) -> Iterable[WorkloadItem]:
        return (
            WorkloadItem(
                prompt_token_ids=source.prose_to_complete(self.max_prompt_tokens, streams.prompts),
                max_tokens=self.max_tokens,
                arrival_s=arrival_s,
            )
            for arrival_s in self.draw_arrivals(self.num_requests, streams)
        )
