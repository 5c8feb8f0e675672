"""The tracking seam: told of each run once its tables are on the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Mirrored:
    """A run that has a row."""

    run_id: str
    # Resolved.
    config: Mapping[str, Any]
    # Of the `runs` table.
    row: Mapping[str, Any]


class Tracker(Protocol):
    """Made with `folder` and `sweep`, beside its own keys."""

    def record(self, run: Mirrored) -> None:
        """Mirror a run. Called for complete runs of an earlier launch too: those that are mirrored are left alone."""
        ...

    def finish(self, runs: Sequence[Mirrored]) -> None:
        """Mirror the sweep as a whole, its report included. Called once, when all of it lies in the folder."""
        ...

    def close(self) -> None: ...
