"""Where prompt tokens come from: text that the shipped model has never seen, any other text, random tokens, or nothing
but their number."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from experiments.workloads.paragraphs import paragraphs

# Text is cut before it is tokenized: more characters a token than any tokenizer needs for code.
_CHARS_PER_TOKEN = 8
_GAP = re.compile(r"\s+")


class PromptSource(Protocol):
    """Makes prompts; all chance comes from the generator that it is given."""

    def tokens(self, count: int, generator: np.random.Generator, *, start: bool = True) -> tuple[int, ...]:
        """Exactly `count` tokens from a random place, the model's first token before them where `start`."""
        ...

    def to_complete(self, max_tokens: int, generator: np.random.Generator) -> tuple[int, ...]:
        """The beginning of a document up to a random line: its last `max_tokens` tokens."""
        ...

    def prose_to_complete(self, max_tokens: int, generator: np.random.Generator) -> tuple[int, ...]:
        """The prose of a document up to a random word within a paragraph: its last `max_tokens` tokens."""
        ...


class RandomTokens:
    """Tokens drawn from the whole vocabulary: for speed, where the text does not matter."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def tokens(self, count: int, generator: np.random.Generator, *, start: bool = True) -> tuple[int, ...]:
        return tuple(generator.integers(0, self._vocab_size, size=count).tolist())

    def to_complete(self, max_tokens: int, generator: np.random.Generator) -> tuple[int, ...]:
        return self.tokens(int(generator.integers(1, max_tokens, endpoint=True)), generator)

    def prose_to_complete(self, max_tokens: int, generator: np.random.Generator) -> tuple[int, ...]:
        return self.to_complete(max_tokens, generator)


class LengthsOnly(RandomTokens):
    """Prompts that say nothing and cost nothing, for where only lengths count: a random number of 63 bits in the digits
    of the vocabulary, then zeros. No two begin alike, so that a prefix cache finds nothing.

    Args:
        vocab_size: 2 or more.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        assert vocab_size >= 2
        self._num_digits = next(count for count in range(1, 64) if vocab_size**count >= 2**63)

    def tokens(self, count: int, generator: np.random.Generator, *, start: bool = True) -> tuple[int, ...]:
        number = int(generator.integers(2**63))
        digits = []
        for _ in range(min(self._num_digits, count)):
            number, digit = divmod(number, self._vocab_size)
            digits.append(digit)
        return (*digits, *(0,) * (count - len(digits)))


class TextPrompts:
    """Stretches of documents.

    Args:
        documents: their texts, none of them empty.
        encode: text to token ids, without special tokens.
        first_token_id: put before every prompt, where the model has such a token.
    """

    def __init__(
        self, documents: Sequence[str], encode: Callable[[str], list[int]], first_token_id: int | None = None
    ) -> None:
        # Offsets of line starts, for cuts at lines.
        self._documents = [(text, _line_starts(text)) for text in documents]
        self._encode = encode
        self._first = () if first_token_id is None else (first_token_id,)

    def tokens(self, count: int, generator: np.random.Generator, *, start: bool = True) -> tuple[int, ...]:
        found = list(self._first) if start else []
        while len(found) < count:
            text, starts = self._pick(generator)
            at = starts[int(generator.integers(len(starts)))]
            found += self._encode(text[at : at + (count - len(found)) * _CHARS_PER_TOKEN])
        return tuple(found[:count])

    def to_complete(self, max_tokens: int, generator: np.random.Generator) -> tuple[int, ...]:
        text, starts = self._pick(generator)
        end = starts[int(generator.integers(1, len(starts)))] if len(starts) > 1 else len(text)
        return self._ending(text[:end], max_tokens)

    def prose_to_complete(self, max_tokens: int, generator: np.random.Generator) -> tuple[int, ...]:
        prose = self._prose
        if not prose:
            raise ValueError(
                "workload.prompts: has no paragraphs of docstrings or comments; workload=code_completion takes any text"
            )
        before, paragraph = prose[int(generator.integers(len(prose)))]
        gaps = [gap.start() for gap in _GAP.finditer(paragraph)]
        # As the docstring of a module, which is where the model met prose.
        return self._ending(f'"""{before}{paragraph[: gaps[int(generator.integers(len(gaps)))]]}', max_tokens)

    def encoded(self, text: str) -> tuple[int, ...]:
        """A text of somebody's own in tokens, the model's first token before them."""
        return (*self._first, *self._encode(text))

    @cached_property
    def _prose(self) -> list[tuple[str, str]]:
        """Each paragraph, and those of its document before it."""
        found = []
        for text, _ in self._documents:
            parts = paragraphs(text)
            found += [("".join(f"{one}\n\n" for one in parts[:place]), part) for place, part in enumerate(parts)]
        return found

    def _ending(self, text: str, max_tokens: int) -> tuple[int, ...]:
        begin = max(0, len(text) - max_tokens * _CHARS_PER_TOKEN)
        ids = self._encode(text[begin:])
        room = max_tokens - len(self._first)
        # A prompt that starts in the middle of a document has no first token.
        return (*self._first, *ids) if begin == 0 and len(ids) <= room else tuple(ids[-max_tokens:])

    def _pick(self, generator: np.random.Generator) -> tuple[str, list[int]]:
        return self._documents[int(generator.integers(len(self._documents)))]


def read_documents(
    path: str, *, key: str = "workload.prompts", members: str = "heldout, random, lengths_only"
) -> list[str]:
    """Texts of a .jsonl file with lines {"path", "text"}.

    Args:
        path: of the file.
        key: config key for messages, and `members` what it may be beside a file.

    Raises:
        ValueError: no such file, or a line that is not in this form.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        hint = f"use {members} or a .jsonl file"
        raise ValueError(f"{key}={path!r}: cannot be read: {error}; {hint}") from error
    documents = []
    for number, line in enumerate(lines, start=1):
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{key}={path!r}: line {number} is no {{"path", "text"}}') from error
        if isinstance(text, str) and text.strip():
            documents.append(text)
    if not documents:
        raise ValueError(f"{key}={path!r}: has no text")
    return documents


def _line_starts(text: str) -> list[int]:
    return [0, *(i + 1 for i, c in enumerate(text[:-1]) if c == "\n")]
