"""The seam of lengths, and what becomes of a pair that does not fit into the model's context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from minivllm.config import require

TOO_LONG = ("redraw", "clip", "error")
# Draws in a row of which none is allowed, before one says so.
MOST_REFUSED = 10_000


class Lengths(Protocol):
    """Lengths of requests."""

    def pairs(self, generator: np.random.Generator) -> Iterator[tuple[int, int]]:
        """(prompt tokens, output tokens), each 1 or more, without an end."""
        ...


class Distribution(Protocol):
    """Lengths of prompts, or of outputs."""

    def draw(self, size: int, generator: np.random.Generator) -> np.ndarray:
        """Returns: [size] int64, each 1 or more."""
        ...


@runtime_checkable
class TakesLengths(Protocol):
    """A workload whose lengths are a part of their own."""

    def with_lengths(self, lengths: Lengths | None, max_model_len: int) -> Any:
        """The workload with these lengths, in a context of so many tokens."""
        ...


def fitting(pairs: Iterator[tuple[int, int]], limit: int, too_long: str) -> Iterator[tuple[int, int]]:
    """Pairs of at most `limit` tokens together.

    Args:
        pairs: without an end.
        limit: 2 or more.
        too_long: `redraw` leaves longer pairs out, so that what remains has the distribution of those that fit; `clip`
            cuts the prompt to what leaves one token, and then the output to what is left; `error` raises.

    Raises:
        ValueError: a pair is too long, or hardly any pair fits.
    """
    refused = 0
    for num_prompt, num_output in pairs:
        if num_prompt + num_output <= limit:
            refused = 0
            yield num_prompt, num_output
        elif too_long == "clip":
            num_prompt = min(num_prompt, limit - 1)
            yield num_prompt, min(num_output, limit - num_prompt)
        else:
            refused += 1
            drawn = f"lengths: {num_prompt} prompt and {num_output} output tokens"
            require(too_long == "redraw", drawn, num_prompt + num_output, f"at most {limit}, or workload.too_long=clip")
            require(refused < MOST_REFUSED, drawn, num_prompt + num_output, f"at most {limit}; hardly any pair is")


def require_tokens(name: str, value: object, least: int = 1) -> None:
    """Raises the ValueError of a value that is no number of tokens."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and int(value) >= least, name, value, f"a whole number, {least} or more")  # type: ignore[call-overload]
