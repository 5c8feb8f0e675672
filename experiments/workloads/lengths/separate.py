"""Prompts and outputs each by a distribution of its own, and neither knows of the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.workloads.draws import endless
from experiments.workloads.lengths.base import Distribution
from minivllm.config import Component, require


class Separate:
    """Independent lengths.

    Args:
        prompt, output: each a mapping with `_target_`, the class of a `Distribution`, and its arguments.
    """

    def __init__(self, *, prompt: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        self._prompt, self._output = _make("prompt", prompt), _make("output", output)

    def pairs(self, generator: np.random.Generator) -> Iterator[tuple[int, int]]:
        # A generator each: one that draws more, as when it draws again, does not shift the other.
        prompts, outputs = generator.spawn(2)
        return zip(
            endless(lambda size: self._prompt.draw(size, prompts)),
            endless(lambda size: self._output.draw(size, outputs)),
            strict=True,
        )


def _make(side: str, given: Mapping[str, Any]) -> Distribution:
    key = f"lengths.{side}"
    named = isinstance(given, Mapping) and isinstance(given.get("_target_"), str)
    require(named, key, given, "a mapping with _target_ and the arguments of that class")
    arguments = {name: value for name, value in given.items() if name != "_target_"}
    try:
        made: Distribution = Component(target=given["_target_"], kwargs=arguments).make(key)
    except ValueError as error:
        text = str(error)
        # A distribution knows its own arguments, and not on which side it stands.
        raise ValueError(text if text.startswith(key) else f"{key}.{text}") from error
    return made
