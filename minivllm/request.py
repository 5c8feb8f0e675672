"""A request: its tokens, its progress and its timestamps. It owns no block and no tensor."""

from __future__ import annotations

import enum
from typing import Protocol

from minivllm.sampling_params import SamplingParams


class RequestStatus(enum.Enum):
    """Where a request is; a preempted one waits again. An ending one has run its last token and holds nothing any more:
    only the token's value is still to come."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDING = "ending"
    FINISHED = "finished"


class FinishReason(str, enum.Enum):
    """Why a request ended: vLLM's words, plus `error` for one whose logits were not numbers."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class RequestView(Protocol):
    """What a scheduling policy may read of a request. All times are seconds on the engine's clock."""

    @property
    def request_id(self) -> int: ...
    @property
    def parent_id(self) -> int | None: ...
    @property
    def arrival_s(self) -> float: ...
    @property
    def first_scheduled_s(self) -> float | None: ...
    @property
    def first_token_s(self) -> float | None: ...
    @property
    def last_token_s(self) -> float | None: ...
    @property
    def priority(self) -> int: ...
    @property
    def client_id(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_computed_tokens(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def predicted_output_tokens(self) -> int: ...
    @property
    def is_prefill(self) -> bool: ...


class Speculated:
    """What became of a request's drafts.

    A position is a draft's distance from the newest token, 1 for the first: `proposed[i]`, `evaluated[i]` and
    `accepted[i]` count verifications whose drafts reached position i + 1, where the verdict fell on a draft there (all
    before it were accepted), and where that was accepted. What lies behind a rejected draft was never evaluated.
    """

    __slots__ = ("accepted", "evaluated", "num_accepted_tokens", "num_draft_tokens", "num_verifications", "proposed")

    def __init__(self) -> None:
        self.num_verifications = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.proposed: list[int] = []
        self.evaluated: list[int] = []
        self.accepted: list[int] = []

    def add(self, num_draft_tokens: int, draft_depth: int, num_accepted_tokens: int) -> None:
        """One verification of drafts, `draft_depth` of them on the longest path."""
        assert 0 <= num_accepted_tokens <= draft_depth <= num_draft_tokens
        self.num_verifications += 1
        self.num_draft_tokens += num_draft_tokens
        self.num_accepted_tokens += num_accepted_tokens
        for counts in (self.proposed, self.evaluated, self.accepted):
            counts.extend([0] * (draft_depth - len(counts)))
        for i in range(draft_depth):
            self.proposed[i] += 1
            self.evaluated[i] += i <= num_accepted_tokens
            self.accepted[i] += i < num_accepted_tokens


class Request:
    """One sequence on its way through the engine.

    Args:
        request_id: unique in its engine, counts up with arrival.
        prompt_token_ids: at least one token.
        sampling_params: how its tokens are chosen.
        sampling_seed: with the position it decides every draw.
        arrival_s: when it was due, on the engine's clock.
        max_total_tokens: the context that the model (or the pool) leaves it, prompt included; its own `max_tokens`
            may end it sooner.
        eos_token_ids: end tokens of the model; empty when the request ignores them.
        priority: lower is served first, by the policies that look at it.
        client_id: who sent it, for fairness.
        predicted_output_tokens: what is known of its length; None leaves it to a predictor, and without one it is
            `max_tokens`.
        parent_id: the request whose prompt it shares (`n` > 1), None for the first of them.

    Invariants: `0 <= num_computed_tokens < num_tokens` while unfinished: the K/V of positions
    `[0, num_computed_tokens)` lies in its blocks, or in host memory while it is swapped out (or will, when the steps on
    their way are done), and the newest token is never computed yet. The newest token may be pending: it is being
    sampled, counts in `num_tokens`, and is not in `token_ids`.
    """

    __slots__ = (
        "arrival_s",
        "client_id",
        "error",
        "finish_reason",
        "finish_s",
        "first_scheduled_s",
        "logprobs",
        "max_total_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "speculated",
        "num_prompt_tokens",
        "num_recomputed_tokens",
        "num_tokens",
        "parent_id",
        "has_known_length",
        "predicted_output_tokens",
        "preempted_at_s",
        "priority",
        "request_id",
        "resumed_at_s",
        "sampling_params",
        "sampling_seed",
        "status",
        "stop_token_ids",
        "token_ids",
        "token_times_s",
    )

    def __init__(
        self,
        *,
        request_id: int,
        prompt_token_ids: list[int],
        sampling_params: SamplingParams,
        sampling_seed: int,
        arrival_s: float,
        max_total_tokens: int,
        eos_token_ids: frozenset[int] = frozenset(),
        priority: int = 0,
        client_id: int = 0,
        predicted_output_tokens: int | None = None,
        parent_id: int | None = None,
    ) -> None:
        assert prompt_token_ids, "the engine refuses empty prompts"
        self.request_id = request_id
        self.parent_id = parent_id
        self.sampling_params = sampling_params
        self.sampling_seed = sampling_seed
        self.arrival_s = arrival_s
        self.stop_token_ids = eos_token_ids | frozenset(sampling_params.stop_token_ids)
        self.priority = priority
        self.client_id = client_id
        self.max_total_tokens = min(max_total_tokens, len(prompt_token_ids) + sampling_params.max_tokens)
        self.has_known_length = predicted_output_tokens is not None
        self.predicted_output_tokens = (
            sampling_params.max_tokens if predicted_output_tokens is None else predicted_output_tokens
        )

        # Prompt, then output, as far as its values are known.
        self.token_ids = list(prompt_token_ids)
        self.num_tokens = self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        # Of the first admission only: later hits find the request's own work.
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.num_recomputed_tokens = 0
        self.speculated = Speculated()

        self.status = RequestStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.first_scheduled_s: float | None = None
        self.finish_s: float | None = None
        # Of each preemption, and of the admission that followed; one that ended in between has no last resumption.
        self.preempted_at_s: list[float] = []
        self.resumed_at_s: list[float] = []
        self.token_times_s: list[float] = []
        # One dict a position, {token: logprob}, filled only where asked for.
        self.logprobs: list[dict[int, float]] = []

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def max_tokens(self) -> int:
        return self.sampling_params.max_tokens

    @property
    def first_token_s(self) -> float | None:
        return self.token_times_s[0] if self.token_times_s else None

    @property
    def last_token_s(self) -> float | None:
        return self.token_times_s[-1] if self.token_times_s else None

    @property
    def is_prefill(self) -> bool:
        """More than the newest token is still to be computed."""
        return self.num_tokens - self.num_computed_tokens > 1

    @property
    def finished(self) -> bool:
        return self.status is RequestStatus.FINISHED

    @property
    def num_tokens_left(self) -> int:
        """Tokens that it may still get."""
        return self.max_total_tokens - self.num_tokens

    @property
    def is_full(self) -> bool:
        """The newest token is the last one, whatever its value."""
        return self.num_tokens >= self.max_total_tokens

    @property
    def has_pending_token(self) -> bool:
        return len(self.token_ids) < self.num_tokens

    def expect_token(self) -> None:
        """One more token is being sampled: count it, before its value is known."""
        assert not self.has_pending_token
        self.num_tokens += 1

    def append(self, token_id: int, now_s: float) -> None:
        """A token's value is known: the pending one's, or that of one more."""
        if not self.has_pending_token:
            self.num_tokens += 1
        self.token_ids.append(token_id)
        self.token_times_s.append(now_s)

    def drop_pending_token(self) -> None:
        """Nobody waits for it any more."""
        self.num_tokens = len(self.token_ids)

    def cut(self, num_output_tokens: int) -> None:
        """Forget the output behind its first tokens; no token is pending."""
        assert not self.has_pending_token and 0 < num_output_tokens <= self.num_output_tokens
        self.num_tokens = self.num_prompt_tokens + num_output_tokens
        del self.token_ids[self.num_tokens :]
        del self.token_times_s[num_output_tokens:]
        del self.logprobs[num_output_tokens:]

    def stop_reason(self) -> FinishReason | None:
        """Why the newest token ends the request, or None. The end token counts as output, as in vLLM."""
        if self.token_ids[-1] in self.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.is_full else None

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id}, {self.status.value}, prompt {self.num_prompt_tokens}, "
            f"output {self.num_output_tokens}, computed {self.num_computed_tokens})"
        )
