"""Requests that wait, in the order of their coming and in the policy's.

A policy whose keys stand still while a request waits has them asked once and kept sorted, so that a step costs the same
however long the queue is; for any other, a step that could let somebody in ranks the whole queue.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from minivllm.request import Request
from minivllm.scheduler.base import KeyChanges, SchedulingPolicy, break_rule, keys_of, ranked

_MOST_GONE = 4096


class WaitingQueue:
    """Iterates over its requests in order of arrival or preemption.

    Args:
        policy: whose key ranks them.
    """

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._policy = policy
        self._requests: dict[int, Request] = {}
        self._keeps_keys = policy.key_changes is not KeyChanges.EVERY_STEP
        # (key, number of coming, request id), sorted from `_first` on: what is before has gone.
        self._entries: list[tuple[tuple[float, ...], int, int]] = []
        self._first = 0
        self._entry_of: dict[int, tuple[tuple[float, ...], int, int]] = {}
        self._num_come = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def __contains__(self, request: object) -> bool:
        return isinstance(request, Request) and self._requests.get(request.request_id) is request

    def add(self, request: Request, now_s: float) -> None:
        """Raises:
        PolicyError: the policy's key cannot be ranked; the request waits all the same.
        """
        self._requests[request.request_id] = request
        self._num_come += 1
        if self._keeps_keys:
            (key,) = keys_of(self._policy, [request], now_s)
            entry = self._entry_of[request.request_id] = (key, self._num_come, request.request_id)
            try:
                insort(self._entries, entry, lo=self._first)
            except TypeError as error:
                del self._entry_of[request.request_id]
                break_rule(self._policy, "keys", f"they cannot be compared: {error}")

    def remove(self, request: Request) -> None:
        del self._requests[request.request_id]
        entry = self._entry_of.pop(request.request_id, None)
        if entry is None:
            return
        entries = self._entries
        at = bisect_left(entries, entry, lo=self._first)
        assert entries[at] is entry
        if at > self._first:
            del entries[at]
            return
        # The usual case: no other entry has to move.
        self._first += 1
        if self._first > min(len(entries) // 2, _MOST_GONE):
            del entries[: self._first]
            self._first = 0

    def first(self, limit: int, now_s: float) -> list[Request]:
        """The most deserving, best first, `limit` at most.

        Raises:
            PolicyError: the policy's keys cannot be ranked.
        """
        if not self._keeps_keys:
            return ranked(self._policy, list(self), now_s)[:limit]
        return [self._requests[entry[2]] for entry in self._entries[self._first : self._first + limit]]

    def check(self) -> None:
        """Assert that the ranking holds the requests."""
        if self._keeps_keys:
            live = self._entries[self._first :]
            assert live == sorted(live) and {entry[2] for entry in live} == set(self._requests)
