"""Drafters and draft lengths of a user's own, for tests of what must hold whoever drafts."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from minivllm.clock import VirtualClock
from minivllm.speculation.base import DraftRequest, HostDrafter
from minivllm.speculation.lengths.base import DraftCandidate, DraftLengthPolicy


def dice(sides: int, *seeds: int) -> int:
    """A number in [0, sides) that is a function of the seeds alone."""
    raw = b"".join(seed.to_bytes(8, "little") for seed in seeds)
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "little") % sides


class TickingClock(VirtualClock):
    """Every look at it takes a millisecond, so that what depends on measured times repeats itself."""

    def now_s(self) -> float:
        self.advance(0.001)
        return super().now_s()


class Garbage(HostDrafter):
    """Drafts anything, of any number."""

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        vocab_size = self.target.model.spec.vocab_size
        return [
            [dice(vocab_size, r.request_id, r.num_tokens, i) for i in range(dice(r.num_draft_tokens + 1, r.num_tokens))]
            for r in requests
        ]


class Foretold(HostDrafter):
    """Knows how each text goes on, and is right up to a random draft.

    Args:
        target: see `Drafter`.
        texts: prompts with their continuations; a request goes on as the first one that begins like it.
        most_right: at most so many drafts are right.
    """

    def __init__(self, *, target, texts: Sequence[Sequence[int]], most_right: int) -> None:
        super().__init__(target=target)
        self._texts = [tuple(text) for text in texts]
        self._most_right = most_right
        self._known: dict[int, list[int]] = {}

    def start(self, request_id: int, token_ids: Sequence[int]) -> None:
        self._known[request_id] = list(token_ids)

    def extend(self, request_id: int, num_tokens: int, token_ids: Sequence[int]) -> None:
        self._known[request_id] += token_ids
        assert len(self._known[request_id]) == num_tokens, "the drafter was told something else"

    def end(self, request_id: int) -> None:
        self._known.pop(request_id, None)

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        return [self._of(request) for request in requests]

    def _of(self, request: DraftRequest) -> list[int]:
        known = tuple(self._known[request.request_id])
        assert len(known) == request.num_tokens
        right = next((text[len(known) :] for text in self._texts if text[: len(known)] == known), ())
        drafts = list(right[: request.num_draft_tokens])
        vocab_size = self.target.model.spec.vocab_size
        for i in range(dice(self._most_right + 1, request.request_id, request.num_tokens), len(drafts)):
            drafts[i] = (drafts[i] + 1) % vocab_size
        return drafts


class RandomLengths(DraftLengthPolicy):
    """As many drafts as the dice say, none included; counts what it is told."""

    def __init__(self, *, num_draft_tokens: int) -> None:
        super().__init__(num_draft_tokens=num_draft_tokens)
        self._num_calls = 0
        self.num_observed = 0
        self.forgotten: set[int] = set()

    def choose(self, candidates: Sequence[DraftCandidate], num_prefill_tokens: int) -> Sequence[int]:
        self._num_calls += 1
        assert num_prefill_tokens >= 0 and len({c.request_id for c in candidates}) == len(candidates)
        assert not self.forgotten & {c.request_id for c in candidates}
        return [dice(c.limit + 1, self._num_calls, c.request_id) for c in candidates]

    def observe(self, step) -> None:
        assert step.duration_s >= step.draft_s >= 0
        for outcome in step.outcomes:
            assert 0 <= outcome.num_accepted_tokens <= outcome.draft_depth <= outcome.num_draft_tokens
            assert outcome.num_draft_tokens <= outcome.num_allowed_tokens
        self.num_observed += 1

    def forget(self, request_id: int) -> None:
        self.forgotten.add(request_id)
