"""No mirror."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.tracking.base import Mirrored


@dataclass(frozen=True, kw_only=True)
class NoTracker:
    """Takes what every tracker takes, and shows it to nobody."""

    folder: Path
    sweep: str

    def record(self, run: Mirrored) -> None:
        pass

    def finish(self, runs: Sequence[Mirrored]) -> None:
        pass

    def close(self) -> None:
        pass
