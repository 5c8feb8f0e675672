"""Unrelated requests with lengths of whatever distribution: the plain load of a service."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from experiments.workloads.base import Streams, WorkloadBase, WorkloadItem
from experiments.workloads.lengths.base import TOO_LONG, Lengths, fitting
from experiments.workloads.prompts import PromptSource
from minivllm.config import require

TrafficType = TypeVar("TrafficType", bound="Traffic")


@dataclass(frozen=True, kw_only=True)
class Traffic(WorkloadBase):
    """Prompts and outputs of the lengths that `lengths=...` gives.

    Args:
        num_requests: in all.
        max_total_tokens: of prompt and output together; null: the model's context.
        too_long: what becomes of a request that is longer, see `fitting`.
        lengths: given by the house, from the group of that name.
    """

    num_requests: int
    max_total_tokens: int | None = None
    too_long: str = "redraw"
    lengths: Lengths | None = None

    def __post_init__(self) -> None:
        WorkloadBase.__post_init__(self)
        self.require_counts("num_requests")
        if self.max_total_tokens is not None:
            self.require_counts("max_total_tokens", least=2)
        require(self.too_long in TOO_LONG, "workload.too_long", self.too_long, f"one of {', '.join(TOO_LONG)}")

    def with_lengths(self: TrafficType, lengths: Lengths | None, max_model_len: int) -> TrafficType:
        """The workload with these lengths, in a context of so many tokens."""
        if lengths is None:
            raise ValueError(
                "lengths=workload: this workload has no lengths of its own; choose lengths=lognormal or such"
            )
        total = max_model_len if self.max_total_tokens is None else self.max_total_tokens
        within = f"null or at most the context, model.max_model_len={max_model_len}"
        require(total <= max_model_len, "workload.max_total_tokens", total, within)
        return dataclasses.replace(self, lengths=lengths, max_total_tokens=total)

    def items(self, streams: Streams, source: PromptSource) -> Iterable[WorkloadItem]:
        return (
            WorkloadItem(
                prompt_token_ids=source.tokens(num_prompt, streams.prompts), max_tokens=num_output, arrival_s=arrival_s
            )
            for arrival_s, (num_prompt, num_output) in zip(
                self.draw_arrivals(self.num_requests, streams), self.draw_pairs(streams), strict=True
            )
        )

    def draw_pairs(self, streams: Streams, *, reserved_tokens: int = 0) -> Iterator[tuple[int, int]]:
        """(prompt tokens, output tokens) of each request, of which a prompt has `reserved_tokens` already."""
        assert self.lengths is not None and self.max_total_tokens is not None
        limit = self.max_total_tokens - reserved_tokens
        return islice(fitting(self.lengths.pairs(streams.lengths), limit, self.too_long), self.num_requests)
