"""A part that makes the engine slower by a known share: what a comparison has to find."""

from __future__ import annotations

import time
from typing import Any

from minivllm.attention.base import PackedBatch
from minivllm.attention.numba_backend import NumbaAttention, NumbaMetadata


class SlowerAttention(NumbaAttention):
    """The CPU backend, waiting before each step for a share of the time since the wait before.

    Args:
        slow_down: 0.05 makes what is between two steps, the steps themselves above all, 5 % longer.
    """

    def __init__(self, slow_down: float, **given: Any) -> None:
        super().__init__(**given)
        self._slow_down = slow_down
        self._waited_s: float | None = None

    def prepare(self, batch: PackedBatch) -> NumbaMetadata:
        now_s = time.perf_counter()
        if self._waited_s is not None:
            # A gap between two workloads is no step.
            until_s = now_s + self._slow_down * min(now_s - self._waited_s, 0.1)
            while time.perf_counter() < until_s:
                pass
        self._waited_s = time.perf_counter()
        return super().prepare(batch)
