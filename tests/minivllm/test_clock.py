from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.clock import Clock, VirtualClock, WallClock


def test_a_wall_clock_counts_from_its_making_and_never_goes_back() -> None:
    clock = WallClock()
    times = [clock.now_s() for _ in range(1000)]
    assert times[0] >= 0 and times == sorted(times)


def test_a_wall_clock_sleeps_until_the_moment_and_not_for_a_time() -> None:
    clock = WallClock()
    at_s = clock.now_s() + 0.02
    clock.sleep_until(at_s)
    assert clock.now_s() >= at_s
    # Moments that have passed: all of these together would be an hour.
    for past_s in (at_s, 0.0, -3600.0):
        before_s = clock.now_s()
        clock.sleep_until(past_s)
        assert clock.now_s() - before_s < 60


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6)), max_size=20))
def test_a_virtual_clock_moves_only_forward_and_only_when_told(moves: list[tuple[bool, float]]) -> None:
    clock = VirtualClock()
    expected_s = 0.0
    for advance, seconds in moves:
        if advance:
            clock.advance(seconds)
            expected_s += seconds
        else:
            clock.sleep_until(seconds)
            expected_s = max(expected_s, seconds)
        assert clock.now_s() == clock.now_s() == expected_s


@pytest.mark.parametrize("by_s", [-1e-9, -5.0, math.nan, -math.inf])
def test_a_virtual_clock_refuses_to_go_back(by_s: float) -> None:
    clock = VirtualClock()
    clock.advance(2.0)
    with pytest.raises(ValueError, match="cannot move by"):
        clock.advance(by_s)
    assert clock.now_s() == 2.0


def test_clocks_are_independent() -> None:
    clocks: tuple[Clock, ...] = (VirtualClock(), VirtualClock())
    clocks[0].sleep_until(3.0)
    assert [clock.now_s() for clock in clocks] == [3.0, 0.0]
