"""How one request wants its tokens chosen. Names and meaning follow vLLM's offline API."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Sampling of one request.

    Args:
        temperature: 0 is greedy; else logits are divided by it.
        top_k: keep the k likeliest tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        min_p: keep tokens with at least this fraction of the likeliest token's probability, in [0, 1].
        max_tokens: at most this many output tokens, at least 1.
        n: independent continuations of one prompt, which share the prompt's K/V blocks.
        seed: with the position it decides every draw of this request; None takes one from the engine's seed.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: tokens that end the request.
        ignore_eos: go on after the model's end token (for measurements at a fixed length).
        logprobs: report this many likeliest tokens a position, beside the chosen one; None reports nothing.
        repetition_penalty: above 1 discourages tokens of prompt and output (CTRL, arXiv 1909.05858, section 4.1).
        presence_penalty: subtracted once from the logit of each token in the output so far, in [-2, 2].
        frequency_penalty: subtracted for each occurrence in the output so far, in [-2, 2].

    Raises:
        ValueError: a value outside its range, with the value and the key.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 16
    n: int = 1
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _several(self.stop, str, "stop", "strings"))
        object.__setattr__(
            self, "stop_token_ids", _several(self.stop_token_ids, int, "stop_token_ids", "whole numbers")
        )
        _require(_finite(self.temperature) and self.temperature >= 0, "temperature", self.temperature, "0 or more")
        _require(_whole(self.top_k) and self.top_k >= -1, "top_k", self.top_k, "a whole number, 0 (all) or more")
        _require(_finite(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(_finite(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        _require(_whole(self.max_tokens) and self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more")
        _require(_whole(self.n) and self.n >= 1, "n", self.n, "1 or more")
        _require(self.seed is None or _whole(self.seed), "seed", self.seed, "a whole number or null")
        _require(all(isinstance(s, str) and s for s in self.stop), "stop", self.stop, "non-empty strings")
        _require(all(map(_whole, self.stop_token_ids)), "stop_token_ids", self.stop_token_ids, "whole numbers")
        _require(
            self.logprobs is None or (_whole(self.logprobs) and 0 <= self.logprobs <= 1024),
            "logprobs",
            self.logprobs,
            "null or in [0, 1024]",
        )
        _require(
            _finite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            self.repetition_penalty,
            "above 0",
        )
        for key in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, key)
            _require(_finite(value) and -2 <= value <= 2, key, value, "in [-2, 2]")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalized(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def _several(value: object, single: type, key: str, allowed: str) -> tuple[Any, ...]:
    """A tuple of one, several or no values."""
    if isinstance(value, single):
        return (value,)
    _require(value is None or isinstance(value, Iterable), key, value, allowed)
    return tuple(value or ())  # type: ignore[arg-type]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(condition: bool, key: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"sampling.{key}={value!r}: must be {allowed}")
