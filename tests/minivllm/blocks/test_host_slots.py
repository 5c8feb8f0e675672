"""Slots of host memory: everyone's own, and nobody's while a step may still read them."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from minivllm.blocks.host_slots import HostSlots


@settings(max_examples=50, deadline=None)
@given(num_slots=st.integers(0, 9), data=st.data())
def test_a_slot_is_given_out_again_only_after_the_step_in_which_it_was_given_back(num_slots: int, data) -> None:
    slots = HostSlots(num_slots)
    held: dict[int, tuple[int, ...]] = {}
    leaving: set[int] = set()
    for request_id in range(30):
        action = data.draw(st.sampled_from(["take", "give back", "settle"]))
        if action == "take" and slots.num_free:
            held[request_id] = slots.take(request_id, data.draw(st.integers(1, slots.num_free)))
            assert not leaving & {*held[request_id]}
        elif action == "give back" and held:
            other = data.draw(st.sampled_from(sorted(held)))
            slots.give_back(other)
            leaving |= {*held.pop(other)}
        elif action == "settle":
            slots.settle()
            leaving = set()
        everywhere = [slot for taken in held.values() for slot in taken]
        assert len(everywhere) == len({*everywhere}) == slots.num_taken
        assert slots.num_free == num_slots - len(everywhere) - len(leaving)
        assert all(slots.slots(i) == taken for i, taken in held.items()) and not slots.holds(request_id + 100)
        slots.check()


def test_the_first_slots_lie_side_by_side() -> None:
    slots = HostSlots(8)
    assert slots.take(0, 3) == (0, 1, 2) and slots.take(1, 2) == (3, 4)
    slots.give_back(0)
    slots.settle()
    assert slots.take(2, 3) == (0, 1, 2)


def test_more_than_there_is_and_a_second_place_are_no_requests() -> None:
    slots = HostSlots(2)
    with pytest.raises(AssertionError, match="ask num_free first"):
        slots.take(0, 3)
    slots.take(0, 1)
    with pytest.raises(AssertionError, match="in host memory already"):
        slots.take(0, 1)
    # Whoever has nothing gives nothing back.
    slots.give_back(7)
    slots.check()
