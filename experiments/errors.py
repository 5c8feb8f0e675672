"""The two mistakes that end a command with one line."""

from __future__ import annotations


class CommandError(ValueError):
    """The command line or a YAML names something that does not exist. Nothing has run; exit code 2."""


class ResultsError(OSError):
    """The results folder cannot be used: unwritable, full, or in use by another sweep. Exit code 1."""


def one_line(error: BaseException, limit: int = 500) -> str:
    """The message of an error as a single line, for a cell of a table."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
