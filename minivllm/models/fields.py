"""Reading a Hugging Face config, one checked value at a time.

A checkpoint's config.json is the user's input: whatever is wrong with it is one line that names the file, the key,
the value and what would do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn


class Fields:
    """A mapping from a file, with checks. A key whose value is null counts as missing, as in Hugging Face's configs.

    Args:
        mapping: the keys and values.
        source: where they come from, the start of every message.
        prefix: path of this mapping inside the file, such as `rope_parameters.`.
    """

    def __init__(self, mapping: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.mapping = mapping
        self.source = source
        self.prefix = prefix

    def get(self, key: str) -> Any:
        return self.mapping.get(key)

    def refuse(self, key: str, allowed: str) -> NoReturn:
        """Raise the one-line ValueError about `key`."""
        if self.get(key) is None:
            raise ValueError(f"{self.source}: {self.prefix}{key} is missing: must be {allowed}")
        raise ValueError(f"{self.source}: {self.prefix}{key}={self.get(key)!r}: must be {allowed}")

    def require(self, condition: bool, key: str, allowed: str) -> None:
        if not condition:
            self.refuse(key, allowed)

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of 1 or more; required where there is no default."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(key, "a whole number of 1 or more")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0; required where there is no default."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            self.refuse(key, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def nested(self, key: str) -> Fields:
        """The mapping under `key`, empty where it is missing."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self.refuse(key, "a mapping")
        return Fields(value, self.source, f"{self.prefix}{key}.")
