"""The task `next_identifier`: given Python text that ends right before an identifier, which one is it?

An item is a place in a document of the held-out text where

- an identifier begins that stands in code, not in a string or a comment, has 3 to 24 characters and is no keyword;
- the same identifier has occurred before within the context, so that reading and copying suffices in principle: a small
  model is asked what it can know, and a large one still has to choose among all names in sight;
- a token of the model begins, one blank before the identifier aside, which then belongs to the answer; so the context
  is exactly what the model would have read there.

The context is the last `task_context_tokens` tokens before that place, the model's first token in their front, where it
has one. Places are spread over documents and taken evenly within them. The model continues greedily, and is right if
the identifier that its text leads with, blanks aside, is the true one, whole. Both are kept, in `task_expected` and
`task_answer` (an empty text where what came is no identifier).

Source: the task follows LAMBADA's idea (1606.06031), the last word of a passage that must be read to know it, for code.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.quality.settings import QualityConfig
from experiments.quality.spread import spread

TASK = "next_identifier"
# Of an answer; identifiers of more than _MAX_TOKENS are not asked for.
ANSWER_TOKENS = 12
_MAX_TOKENS = 8
_MIN_CHARS, _MAX_CHARS = 3, 24
# Text that is tokenized for a context: more characters a token than most tokenizers need for code, and than any does.
_CHARS_PER_TOKEN = (4, 8)
_LEXEME = re.compile(
    r'''
    (?:"""(?:\\.|[^\\])*?(?:"""|\Z)
      |\'\'\'(?:\\.|[^\\])*?(?:\'\'\'|\Z)
      |"(?:\\.|[^"\\\n])*"?
      |'(?:\\.|[^'\\\n])*'?
      |\#[^\n]*
      |\d\w*)
    |(?P<name>[^\W\d]\w*)
    ''',
    re.VERBOSE | re.DOTALL,
)
_NAME = re.compile(r"[^\W\d]\w*")
_LEADING = re.compile(r"[ \t]*([^\W\d]\w*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskItem:
    """One question: what the model reads, and the identifier that comes next."""

    context: tuple[int, ...]
    expected: str


def leading_identifier(text: str) -> tuple[str, bool]:
    """(the identifier that a text leads with or "", whether more text can change it)."""
    match = _LEADING.match(text)
    assert match is not None
    return match.group(1) or "", match.end() == len(text)


def find_task_items(
    texts: Sequence[str],
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], Any],
    first: tuple[int, ...],
    config: QualityConfig,
) -> tuple[TaskItem, ...]:
    """The items of these documents.

    Args:
        texts: the documents.
        encode, decode: between text and token ids, without special tokens.
        first: the model's first token, or nothing.
        config: how many, and how long.

    Raises:
        ValueError: there are fewer.
    """
    wanted = config.num_task_items
    if not wanted:
        return ()
    size = config.task_context_tokens - len(first)
    found = [_places(text, size) for text in texts]
    items: list[TaskItem] = []
    used: set[tuple[int, int]] = set()
    # A place may turn out to be none; the next one that is not taken stands in for it, then another round of places.
    while len(items) < wanted:
        left = [[place for place in places if (d, place) not in used] for d, places in enumerate(found)]
        chosen = spread([len(places) for places in left], wanted - len(items))
        if not chosen:
            raise ValueError(
                f"quality.num_task_items={wanted}: quality.text={config.text!r} has {len(items)} places to ask for an "
                f"identifier after quality.task_context_tokens={config.task_context_tokens}: lower one, or name "
                "another text"
            )
        for document, index in chosen:
            place = left[document][index]
            used.add((document, place))
            item = _item(texts[document], place, encode, decode, size)
            if item is not None:
                items.append(TaskItem(context=(*first, *item.context), expected=item.expected))
    return tuple(items)


def _places(text: str, size: int) -> list[int]:
    """Where identifiers begin that may be asked for: about enough text before them, and in it the same name."""
    places = []
    for match in _LEXEME.finditer(text):
        name, start = match.group("name"), match.start()
        if name is None or not _MIN_CHARS <= len(name) <= _MAX_CHARS or keyword.iskeyword(name):
            continue
        if start >= 2 * size and name in text[max(0, start - _CHARS_PER_TOKEN[0] * size) : start]:
            places.append(start)
    return places


def _item(
    text: str, start: int, encode: Callable[[str], list[int]], decode: Callable[[list[int]], Any], size: int
) -> TaskItem | None:
    """The item at a place, without the model's first token; None where it is no such place to this tokenizer."""
    match = _NAME.match(text, start)
    assert match is not None
    cut = start - 1 if text[start - 1] == " " else start
    for chars_per_token in _CHARS_PER_TOKEN:
        begin = max(0, cut - chars_per_token * size)
        ids = encode(text[begin:cut])
        if len(ids) >= size or begin == 0:
            break
    if len(ids) < size:
        return None
    # With what follows the text is tokenized as the model would have met it.
    whole = encode(text[begin : match.end()])
    if whole[: len(ids)] != ids or len(whole) - len(ids) > _MAX_TOKENS:
        return None
    context = ids[-size:]
    if match.group() not in _NAME.findall(decode(context)):
        return None
    return TaskItem(context=tuple(context), expected=match.group())
