"""Slots of host memory, one K/V block each, for requests that were swapped out."""

from __future__ import annotations


class HostSlots:
    """Slots `[0, num_slots)`, and who has which.

    Args:
        num_slots: 0 or more.
    """

    def __init__(self, num_slots: int) -> None:
        assert num_slots >= 0
        self.num_slots = num_slots
        self._slots: dict[int, tuple[int, ...]] = {}
        # A stack; low slots come first, so that those of one request mostly lie side by side.
        self._free = list(range(num_slots - 1, -1, -1))
        # Given back, and perhaps still to be read by the step in the making: nobody's until the next one.
        self._leaving: list[int] = []

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_taken(self) -> int:
        """Slots of requests."""
        return sum(len(slots) for slots in self._slots.values())

    def holds(self, request_id: int) -> bool:
        return request_id in self._slots

    def slots(self, request_id: int) -> tuple[int, ...]:
        """One for each of its first blocks."""
        return self._slots[request_id]

    def take(self, request_id: int, num_blocks: int) -> tuple[int, ...]:
        """Slots for a request's first blocks; `num_free` has to allow it."""
        assert request_id not in self._slots, f"request {request_id} is in host memory already"
        assert 1 <= num_blocks <= self.num_free, f"{num_blocks} slots of {self.num_free}: ask num_free first"
        self._slots[request_id] = slots = tuple(self._free.pop() for _ in range(num_blocks))
        return slots

    def give_back(self, request_id: int) -> None:
        """A request comes back or has ended; nothing happens where it has no slots."""
        self._leaving.extend(reversed(self._slots.pop(request_id, ())))

    def settle(self) -> None:
        """A step's plan is made: slots that were given back serve those who come next."""
        if self._leaving:
            self._free += self._leaving
            self._leaving = []

    def check(self) -> None:
        """Assert that each slot is one's or free."""
        everywhere = [*self._free, *self._leaving, *(slot for slots in self._slots.values() for slot in slots)]
        assert sorted(everywhere) == list(range(self.num_slots)), "a slot is lost, or two have it"
