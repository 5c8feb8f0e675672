"""Scheduling policies that break a rule each: for tests only, plugged in by import path. They import no torch."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.request import RequestView
from minivllm.scheduler.base import Allotment, SchedulerState, SchedulingPolicy


class Drops(SchedulingPolicy):
    """Never lets the second measured request in."""

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        return [request for request in super().order(state, now_s) if request.request_id != 3]


class Overspends(SchedulingPolicy):
    """Gives everybody all they want."""

    def plan(self, state: SchedulerState, now_s: float) -> Sequence[Allotment]:
        everyone = self.order(state, now_s)
        return [Allotment(request, request.num_tokens - request.num_computed_tokens) for request in everyone]


class Revives(SchedulingPolicy):
    """Schedules a request that has ended."""

    def __init__(self) -> None:
        self._ended: list[RequestView] = []

    def on_finish(self, request: RequestView, now_s: float) -> None:
        self._ended.append(request)

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        return [*super().order(state, now_s), *self._ended]


class NotANumber(SchedulingPolicy):
    """Has no word for its second measured request."""

    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:
        return (float("nan") if request.request_id == 3 else request.arrival_s,)


class WaitsForever(SchedulingPolicy):
    """Never finds its batch full enough."""

    def wait_until_s(self, state: SchedulerState, now_s: float) -> float | None:
        return float("inf")
