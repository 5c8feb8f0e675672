"""Parts that can be plugged in, and the one-line message of a user's mistake."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Raise the one-line ValueError of a user's mistake: key, value, and what would do."""
    if not condition:
        raise ValueError(f"{key}={value!r}: must be {allowed}")


def is_count(value: object) -> bool:
    """A whole number, 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """A pluggable part: `target` is `package.module.Class`, `kwargs` what it is made with."""

    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def make(self, key: str, expected: type | None = None, **more: Any) -> Any:
        """Import and construct.

        Args:
            key: config key for messages, such as `scheduler`.
            expected: a class that the object must be an instance of.
            more: arguments that the house gives, beside the user's.

        Raises:
            ValueError: no such module or class, arguments that it does not take, or another kind of object.
        """
        module_name, _, class_name = self.target.rpartition(".")
        if not module_name:
            raise ValueError(f"{key}._target_={self.target!r}: must be an import path such as package.module.Class")
        try:
            made_by = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{key}._target_={self.target!r}: cannot be imported: {error}") from error
        try:
            made = made_by(**self.kwargs, **more)
        except TypeError as error:
            raise ValueError(f"{key}: {self.target} does not take {dict(self.kwargs)}: {error}") from error
        if expected is not None and not isinstance(made, expected):
            raise ValueError(f"{key}._target_={self.target!r}: is no {expected.__name__}")
        return made


def component_of_ours(package: str, name: str, kwargs: Mapping[str, Any]) -> Component:
    """A part of ours by its module's name: `draft_model` is the class DraftModel."""
    class_name = "".join(part.capitalize() for part in name.split("_"))
    return Component(target=f"{package}.{name}.{class_name}", kwargs=kwargs)
