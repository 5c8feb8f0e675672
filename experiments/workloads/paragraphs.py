"""The prose in Python files: paragraphs of docstrings and of comments.

Found by how the text looks and not by Python's own parser, so that the same text gives the same paragraphs under every
version of Python, and files that are no valid Python give theirs too.
"""

from __future__ import annotations

import inspect
import re

# Strings in triple quotes, other strings, and comments of one line or of several: whichever begins first.
_TOKEN = re.compile(
    r"""(?P<quote>\"{3}|'{3})(?P<text>(?:\\.|.)*?)(?P=quote)"""
    r"""|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"""
    r"""|(?P<comment>\#[^\n]*(?:\n[ \t]*\#[^\n]*)*)""",
    re.DOTALL,
)
# What may stand before a docstring or a comment in its line.
_BEFORE = re.compile(r"[ \t]*[rRuU]?")
_SIGN = re.compile(r"^[ \t]*#+[ \t]?", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z][a-z']*")
# Shorter ones are headings and remarks; of code, tables and examples less is words.
_FEWEST_WORDS = 10
_LEAST_IN_WORDS = 0.8


def paragraphs(text: str) -> list[str]:
    """Paragraphs of prose in a Python file, in its order, without quotes, comment signs and common indentation.

    Left out are those of few words, and those that are mostly something else.
    """
    found = []
    for token in _TOKEN.finditer(text):
        own = token["text"] if token["comment"] is None else _SIGN.sub("", token["comment"])
        line = text[text.rfind("\n", 0, token.start()) + 1 : token.start()]
        if own is not None and _BEFORE.fullmatch(line):
            found += [part.strip() for part in re.split(r"\n\s*\n", inspect.cleandoc(own)) if _is_prose(part)]
    return found


def _is_prose(part: str) -> bool:
    words = _WORD.findall(part)
    size = sum(not character.isspace() for character in part)
    return ">>>" not in part and len(words) >= _FEWEST_WORDS and sum(map(len, words)) >= _LEAST_IN_WORDS * size
