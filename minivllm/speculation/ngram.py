"""Prompt lookup: the text has been there before, so what followed then may follow now.

The longest suffix of a request's tokens that occurred earlier is looked up in an index of its n-grams, and what came
after the latest occurrence is proposed. The index grows by a few entries a token; nothing is scanned.

Source: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding, 2023); LLMA (arXiv 2304.04487).
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.config import is_count, require
from minivllm.speculation.base import DraftRequest, HostDrafter
from minivllm.speculation.target import DraftTarget


class Ngram(HostDrafter):
    """Drafts what followed the same words before.

    Args:
        target: see `Drafter`.
        max_ngram: longest suffix looked up; longer ones are surer.
        min_ngram: shortest.
        across_requests: look in the texts of other requests, too, those that have ended included, where the request's
            own has nothing as long.
        max_history_entries: n-grams of all texts that are remembered; up to twice as many for a while.
    """

    def __init__(
        self,
        *,
        target: DraftTarget,
        max_ngram: int = 4,
        min_ngram: int = 1,
        across_requests: bool = False,
        max_history_entries: int = 1_000_000,
    ) -> None:
        super().__init__(target=target)
        require(is_count(min_ngram), "speculation.min_ngram", min_ngram, "1 or more")
        valid = is_count(max_ngram) and max_ngram >= min_ngram
        require(valid, "speculation.max_ngram", max_ngram, f"speculation.min_ngram={min_ngram} or more")
        require(isinstance(across_requests, bool), "speculation.across_requests", across_requests, "true or false")
        require(is_count(max_history_entries), "speculation.max_history_entries", max_history_entries, "1 or more")
        # Longest first.
        self._lengths = tuple(range(max_ngram, min_ngram - 1, -1))
        self._texts: dict[int, _Text] = {}
        self._history = _History(max_history_entries) if across_requests else None

    def start(self, request_id: int, token_ids: Sequence[int]) -> None:
        self._texts[request_id] = _Text()
        self.extend(request_id, len(token_ids), token_ids)

    def extend(self, request_id: int, num_tokens: int, token_ids: Sequence[int]) -> None:
        text = self._texts[request_id]
        for token_id in token_ids:
            end = len(text.token_ids)
            for length in self._lengths:
                if length <= end:
                    key = tuple(text.token_ids[end - length :])
                    text.behind[key] = end
                    if self._history is not None:
                        self._history.add(key, text, end)
            # The end of the text is entered when something follows it: so it never finds itself.
            text.token_ids.append(token_id)

    def end(self, request_id: int) -> None:
        self._texts.pop(request_id, None)

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        return [self._lookup(request) for request in requests]

    def _lookup(self, request: DraftRequest) -> Sequence[int]:
        text, count = self._texts[request.request_id], request.num_draft_tokens
        tokens = text.token_ids
        assert len(tokens) == request.num_tokens, "the drafter missed a token"
        for length in self._lengths:
            if length > len(tokens):
                continue
            key = tuple(tokens[-length:])
            at = text.behind.get(key)
            if at is not None:
                drafts = tokens[at : at + count]
                # The text ends as it ended before `at`: what comes there comes again.
                while len(drafts) < count:
                    drafts.append(drafts[at - len(tokens)])
                return drafts
            if self._history is not None and (place := self._history.find(key)) is not None:
                other, at = place
                return other.token_ids[at : at + count]
        return ()


class _Text:
    """One request's tokens, and the place behind the latest occurrence of each n-gram in them."""

    __slots__ = ("behind", "token_ids")

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.behind: dict[tuple[int, ...], int] = {}


class _History:
    """Places in all texts by n-gram, in two generations, so that forgetting costs nothing."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._young: dict[tuple[int, ...], tuple[_Text, int]] = {}
        self._old: dict[tuple[int, ...], tuple[_Text, int]] = {}

    def add(self, key: tuple[int, ...], text: _Text, at: int) -> None:
        self._young[key] = text, at
        if len(self._young) >= self._max_entries:
            self._old, self._young = self._young, {}

    def find(self, key: tuple[int, ...]) -> tuple[_Text, int] | None:
        return self._young.get(key) or self._old.get(key)
