"""Conversations: a user reads the answer, thinks, and says more, and every turn stands behind all turns before it.

What a turn sends is the new message; the driver puts it behind the tokens of the turn that it follows. Contexts grow,
the prefix cache is worth what it keeps until the next turn, and a slow engine slows its own load: think times begin
when an answer ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from experiments.workloads.base import Streams, WorkloadBase, WorkloadItem
from experiments.workloads.prompts import PromptSource
from minivllm.component import is_count, require

TURNS = ("geometric", "fixed")
THINK_TIMES = ("exponential", "lognormal")


@dataclass(frozen=True, kw_only=True)
class Chat(WorkloadBase):
    """Conversations that begin one after the other; `client_id` is the conversation.

    `request_rate_rps` and `concurrency` are of conversations: how often one begins, or how many there are at once.

    Args:
        num_requests: turns in all; the last conversation ends where they are reached.
        turns: of a conversation: `geometric` (at least one, each followed by another with the same probability),
            or `fixed`.
        mean_turns: of a conversation; whole where `fixed`.
        system_prompt_tokens: at the beginning of all conversations, the same in all.
        min_user_tokens, max_user_tokens: lengths of the messages, uniform.
        min_output_tokens, max_output_tokens: lengths of the answers, uniform.
        max_context_tokens: a conversation ends before the turn that would make it longer; null sets no limit.
        think_time: from the end of an answer to the next message: `exponential`, or `lognormal` (few, long pauses).
        mean_think_s: its mean; 0 answers at once.
        think_cv: its coefficient of variation, of `lognormal` alone (of `exponential` it is 1).
    """

    num_requests: int
    turns: str = "geometric"
    mean_turns: float = 4.0
    system_prompt_tokens: int = 0
    min_user_tokens: int
    max_user_tokens: int
    min_output_tokens: int
    max_output_tokens: int
    max_context_tokens: int | None = None
    think_time: str = "exponential"
    mean_think_s: float = 1.0
    think_cv: float = 1.0

    def __post_init__(self) -> None:
        WorkloadBase.__post_init__(self)
        self.require_counts("num_requests")
        self.require_counts("system_prompt_tokens", least=0)
        self.require_range("user_tokens")
        self.require_range("output_tokens")
        require(self.turns in TURNS, "workload.turns", self.turns, f"one of {', '.join(TURNS)}")
        mean = self.mean_turns
        require(_number(mean) and mean >= 1, "workload.mean_turns", mean, "1 or more")
        require(self.turns != "fixed" or mean == int(mean), "workload.mean_turns", mean, "whole where turns are fixed")
        require(self.think_time in THINK_TIMES, "workload.think_time", self.think_time, f"one of {THINK_TIMES}")
        require(
            _number(self.mean_think_s) and self.mean_think_s >= 0,
            "workload.mean_think_s",
            self.mean_think_s,
            "0 or more",
        )
        require(_number(self.think_cv) and self.think_cv > 0, "workload.think_cv", self.think_cv, "above 0")
        limit, least = (
            self.max_context_tokens,
            self.system_prompt_tokens + self.max_user_tokens + self.max_output_tokens,
        )
        fits = limit is None or (is_count(limit) and limit >= least)
        require(
            fits, "workload.max_context_tokens", limit, f"null, or room for the longest first turn: {least} or more"
        )

    def items(self, streams: Streams, source: PromptSource) -> Iterator[WorkloadItem]:
        """All turns of a conversation, then those of the one that begins next, each made when it is asked for."""
        turns_of, thinks = streams.order.spawn(2)
        user_lengths = iter(self.draw_lengths("user_tokens", self.num_requests, streams))
        output_lengths = iter(self.draw_lengths("output_tokens", self.num_requests, streams))
        arrivals = iter(self.draw_arrivals(self.num_requests, streams))
        num_system = self.system_prompt_tokens
        system = source.tokens(num_system, streams.prompts) if num_system else ()
        # Of the conversation so far; `left` counts the turns that it still has.
        conversation, left, context = -1, 0, 0
        for place in range(self.num_requests):
            num_user, num_output = int(next(user_lengths)), int(next(output_lengths))
            # Drawn for first turns too, so that where conversations end does not shift it.
            think_s = self._draw_think_s(thinks)
            begins = left == 0 or self._full(context + num_user + num_output)
            if begins:
                conversation, left, context = conversation + 1, self._draw_turns(turns_of), num_system
            message = source.tokens(num_user, streams.prompts, start=begins and not system)
            yield WorkloadItem(
                prompt_token_ids=system + message if begins else message,
                max_tokens=num_output,
                arrival_s=next(arrivals) if begins else None,
                client_id=conversation,
                follows=None if begins else place - 1,
                think_s=0.0 if begins else think_s,
            )
            left, context = left - 1, context + num_user + num_output

    def _full(self, context: int) -> bool:
        return self.max_context_tokens is not None and context > self.max_context_tokens

    def _draw_turns(self, generator: np.random.Generator) -> int:
        return int(self.mean_turns) if self.turns == "fixed" else int(generator.geometric(1 / self.mean_turns))

    def _draw_think_s(self, generator: np.random.Generator) -> float:
        if self.think_time == "exponential":
            return self.mean_think_s * generator.standard_exponential()
        variance = math.log1p(self.think_cv**2)
        return self.mean_think_s * math.exp(math.sqrt(variance) * generator.standard_normal() - variance / 2)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
