"""Time is an argument: the engine asks a clock, so that a simulation can run the same code on a virtual one."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the engine's timestamps come from."""

    def now_s(self) -> float:
        """Seconds since the clock's own origin; never decreases."""
        ...

    def sleep_until(self, at_s: float) -> None:
        """Return when `now_s()` has reached `at_s`; at once if it has already."""
        ...


class WallClock:
    """The machine's monotonic clock, counted from the moment it was made."""

    def __init__(self) -> None:
        self._origin_s = time.perf_counter()

    def now_s(self) -> float:
        return time.perf_counter() - self._origin_s

    def sleep_until(self, at_s: float) -> None:
        left_s = at_s - self.now_s()
        if left_s > 0:
            time.sleep(left_s)


class VirtualClock:
    """A clock that moves only when told: tests and simulations."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    def advance(self, by_s: float) -> None:
        if not by_s >= 0:
            raise ValueError(f"a clock cannot move by {by_s!r} s")
        self._now_s += by_s

    def sleep_until(self, at_s: float) -> None:
        self._now_s = max(self._now_s, at_s)
