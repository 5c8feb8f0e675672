"""Send a workload to an engine and tell what happens.

A closed loop keeps `concurrency` requests on their way. An open loop sends each request when it is due, and counts its
latency from that moment: the client looks at the clock only between steps, and an engine that is late would else hide
its own queue (coordinated omission). How late the client was is kept beside.

A turn of a conversation is due a while after the one before it ended, and its prompt is all that was said until then.
In a closed loop a conversation keeps its client until its last turn is over. Items are read as they are needed, so
that a workload may be longer than memory; turns therefore stand behind the one that they follow and before the next
conversation.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from experiments.workloads.base import WorkloadItem
from minivllm.engine import Engine
from minivllm.plan import StepReport
from minivllm.request import FinishReason, Request
from minivllm.sampling_params import SamplingParams


class Listener(Protocol):
    """Hears what happens, between steps. All that it keeps is its own."""

    def on_sent(self, request_ids: tuple[int, ...], client_id: int) -> None:
        """The engine has these requests now."""
        ...

    def on_step(self, report: StepReport) -> None:
        """A step is over; the requests that it ended follow."""
        ...

    def on_request(self, request: Request, lateness_s: float | None) -> None:
        """A request ended. `lateness_s`: by how much the client was late; None without a due time."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Driven:
    """What came of a workload. Times are on the engine's clock."""

    start_s: float
    end_s: float
    # Requests that the workload asked for: sent ones, and turns that could not be.
    num_offered: int
    # Turns that were not sent: what they follow failed, or left no room in the context.
    num_dropped: int
    # Due time of the last request that had one; None in a closed loop.
    last_due_s: float | None


class Collected:
    """Keeps all that it hears: for few requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.steps: list[StepReport] = []
        # By request id; only of requests that had a due time.
        self.lateness_s: dict[int, float] = {}

    def on_sent(self, request_ids: tuple[int, ...], client_id: int) -> None:
        pass

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_request(self, request: Request, lateness_s: float | None) -> None:
        self.requests.append(request)
        if lateness_s is not None:
            self.lateness_s[request.request_id] = lateness_s


def drive(
    engine: Engine,
    items: Iterable[WorkloadItem],
    sampling: SamplingParams,
    *,
    concurrency: int | None,
    listener: Listener,
) -> Driven:
    """Run all items to their end.

    Args:
        engine: with nothing on its way.
        items: in order of arrival.
        sampling: how tokens are chosen; `max_tokens` and `seed` are each item's own.
        concurrency: items on their way at once; None for a workload with due times.
        listener: told of everything.

    Raises:
        ValueError: the engine refuses a request, or a turn stands in the wrong place.
    """
    return _Driver(engine, items, sampling, concurrency, listener).run()


@dataclass(kw_only=True, slots=True)
class _Sent:
    """An item on its way."""

    place: int
    lateness_s: float | None
    # Its requests that are not done.
    open_ids: set[int]
    # The one that its conversation goes on from: the first of its requests, once that is done.
    first: Request | None = None


class _Reader:
    """Items as they are needed: the next that follows nothing, and those that follow it."""

    def __init__(self, items: Iterable[WorkloadItem]) -> None:
        self._items = enumerate(items)
        # Place -> turns that follow it.
        self._followers: dict[int, list[tuple[int, WorkloadItem]]] = {}
        # Places that turns may follow.
        self._open: set[int] = set()
        self.next: tuple[int, WorkloadItem] | None = None
        self._read()

    def take(self) -> tuple[int, WorkloadItem]:
        taken = self.next
        assert taken is not None
        self._read()
        return taken

    def followers(self, place: int) -> list[tuple[int, WorkloadItem]]:
        """Turns that follow an item, which has ended."""
        self._open.discard(place)
        return self._followers.pop(place, [])

    def _read(self) -> None:
        self.next = None
        for place, item in self._items:
            if item.follows is None:
                self.next = (place, item)
                self._open.add(place)
                return
            if item.follows not in self._open:
                raise ValueError(
                    f"workload: item {place} follows item {item.follows}, which does not stand in its own "
                    "conversation before it; put the turns of a conversation one behind the other"
                )
            self._open.add(place)
            self._followers.setdefault(item.follows, []).append((place, item))


class _Driver:
    def __init__(
        self,
        engine: Engine,
        items: Iterable[WorkloadItem],
        sampling: SamplingParams,
        concurrency: int | None,
        listener: Listener,
    ) -> None:
        self._engine, self._clock, self._listener = engine, engine.clock, listener
        self._sampling, self._concurrency = sampling, concurrency
        self._reader = _Reader(items)
        self._start_s = self._clock.now_s()
        self._sent: dict[int, _Sent] = {}
        # (due, place, item with its whole prompt)
        self._turns: list[tuple[float, int, WorkloadItem]] = []
        # Clients of a closed loop that are busy, or think.
        self._num_busy = 0
        self._num_offered = self._num_dropped = 0
        self._last_due_s: float | None = None

    def run(self) -> Driven:
        engine, clock, listener = self._engine, self._clock, self._listener
        while True:
            self._send_due()
            if not engine.has_unfinished:
                due_s = self._next_due_s()
                if due_s is None:
                    break
                clock.sleep_until(due_s)
                continue
            report = engine.step()
            if report.idle_until_s is None:
                listener.on_step(report)
            for request in engine.take_finished():
                self._end(request)
            if report.idle_until_s is not None:
                due_s = self._next_due_s()
                clock.sleep_until(report.idle_until_s if due_s is None else min(due_s, report.idle_until_s))
        return Driven(
            start_s=self._start_s,
            end_s=clock.now_s(),
            num_offered=self._num_offered,
            num_dropped=self._num_dropped,
            last_due_s=self._last_due_s,
        )

    def _next_due_s(self) -> float | None:
        """When something is to be sent that waits for nothing but the clock."""
        turn_s = self._turns[0][0] if self._turns else None
        following = self._reader.next
        if self._concurrency is not None or following is None:
            return turn_s
        next_s = self._start_s + (following[1].arrival_s or 0.0)
        return next_s if turn_s is None else min(turn_s, next_s)

    def _send_due(self) -> None:
        now_s = self._clock.now_s
        while self._turns and self._turns[0][0] <= now_s():
            due_s, place, item = heapq.heappop(self._turns)
            self._send(place, item, due_s)
        reader = self._reader
        if self._concurrency is not None:
            while reader.next is not None and self._num_busy < self._concurrency:
                self._num_busy += 1
                place, item = reader.take()
                self._send(place, item, None if item.arrival_s is None else self._start_s + item.arrival_s)
            return
        while reader.next is not None and self._start_s + (reader.next[1].arrival_s or 0.0) <= now_s():
            place, item = reader.take()
            self._send(place, item, None if item.arrival_s is None else self._start_s + item.arrival_s)

    def _send(self, place: int, item: WorkloadItem, due_s: float | None) -> None:
        now_s = self._clock.now_s()
        ids = self._engine.add_request(
            list(item.prompt_token_ids),
            dataclasses.replace(self._sampling, max_tokens=item.max_tokens, seed=item.sampling_seed),
            arrival_s=now_s if due_s is None else due_s,
            priority=item.priority,
            client_id=item.client_id,
        )
        self._num_offered += len(ids)
        lateness_s = None
        if due_s is not None:
            lateness_s = now_s - due_s
            self._last_due_s = due_s if self._last_due_s is None else max(self._last_due_s, due_s)
        sent = _Sent(place=place, lateness_s=lateness_s, open_ids=set(ids))
        for request_id in ids:
            self._sent[request_id] = sent
        self._listener.on_sent(ids, item.client_id)

    def _end(self, request: Request) -> None:
        sent = self._sent.pop(request.request_id)
        sent.open_ids.discard(request.request_id)
        if request.parent_id is None:
            sent.first = request
        self._listener.on_request(request, sent.lateness_s)
        if sent.open_ids:
            return
        self._num_busy -= 1
        first = sent.first
        assert first is not None and request.finish_s is not None
        for place, item in self._reader.followers(sent.place):
            prompt = (*first.token_ids, *item.prompt_token_ids)
            if first.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH) or not self._fits(prompt, item):
                self._drop(place)
                continue
            turn = dataclasses.replace(item, prompt_token_ids=prompt)
            heapq.heappush(self._turns, (request.finish_s + item.think_s, place, turn))
            self._num_busy += 1

    def _fits(self, prompt: tuple[int, ...], item: WorkloadItem) -> bool:
        """Whether the engine would take a prompt at all."""
        engine = self._engine
        longest = min(engine.runner.max_model_len, len(prompt) + item.max_tokens)
        # The last token is sampled, never computed.
        return len(prompt) < engine.runner.max_model_len and longest - 1 <= engine.num_blocks * engine.block_size

    def _drop(self, place: int) -> None:
        """A turn that cannot be sent, and all behind it."""
        self._num_offered += self._sampling.n
        self._num_dropped += self._sampling.n
        for follower, _ in self._reader.followers(place):
            self._drop(follower)
