"""Text of a growing token sequence, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A byte-level tokenizer writes this while the bytes of a character are incomplete.
_INCOMPLETE = "\ufffd"


class TextStream:
    """Decodes one request's output as it comes.

    A token's text depends on its neighbours (spaces, bytes of one character), so the new text is the difference of
    two decodings that share a few tokens of context, and is held back while it ends in an incomplete character.

    Args:
        tokenizer: of transformers.
        stop: strings that end the text and are not part of it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._longest_stop = max(map(len, self._stop), default=0)
        self._token_ids: list[int] = []
        # `[_context, _done)` has been decoded, and is decoded again as context.
        self._context = 0
        self._done = 0
        self._num_sent = 0
        self.text = ""
        # The stop string that ended the text.
        self.stopped_by: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens taken so far."""
        return len(self._token_ids)

    def push(self, token_ids: Sequence[int]) -> bool:
        """Take new tokens; True when a stop string has ended the text, which is cut there."""
        if self.stopped_by is not None:
            return True
        self._token_ids.extend(token_ids)
        new = self._decode_new(final=False)
        return self._take(new)

    def finish(self) -> None:
        """No token comes any more: decode what was held back."""
        if self.stopped_by is None:
            self._take(self._decode_new(final=True))

    def unsent(self, final: bool) -> str:
        """Text not returned by an earlier call; while not `final`, without a tail that could become a stop string."""
        end = len(self.text)
        if not final and self.stopped_by is None and self._stop:
            end = max(self._num_sent, end - self._longest_stop + 1)
        piece = self.text[self._num_sent : end]
        self._num_sent = end
        return piece

    def _take(self, new: str) -> bool:
        search_from = max(0, len(self.text) - self._longest_stop + 1)
        self.text += new
        found = [(at, stop) for stop in self._stop if (at := self.text.find(stop, search_from)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            self.text = self.text[:at]
        return self.stopped_by is not None

    def _decode_new(self, final: bool) -> str:
        before = self._decode(self._context, self._done)
        after = self._decode(self._context, len(self._token_ids))
        if not final and after.endswith(_INCOMPLETE):
            return ""
        new = after[len(before) :]
        # Tokens without text (special ones) are no context: the next word would lose its space.
        if new:
            self._context = self._done
        self._done = len(self._token_ids)
        return new

    def _decode(self, start: int, end: int) -> str:
        return self._tokenizer.decode(self._token_ids[start:end], skip_special_tokens=True)
