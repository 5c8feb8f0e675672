from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from minivllm.sampling.random import Stream, continuation_seed, fold_seed, random_bits, uniforms

_MASK = (1 << 64) - 1


def _mix(state: int) -> int:
    """SplitMix64's finalizer in Python's unbounded ints."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def _bits(seed: int, position: int, stream: int) -> int:
    state = 0
    for absorbed in (seed, stream, position):
        state = _mix(((state ^ absorbed) + 0x9E3779B97F4A7C15) & _MASK)
    return state


def test_mixing_is_splitmix64s() -> None:
    # The first outputs of the published generator from state 1234567.
    step = 0x9E3779B97F4A7C15
    assert [_mix((1234567 + i * step) & _MASK) for i in (1, 2)] == [6457827717110365317, 3203168211198807973]


@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40)), min_size=1), st.sampled_from(Stream)
)
def test_bits_are_the_unbounded_arithmetic_modulo_two_to_the_64(rows: list[tuple[int, int]], stream: Stream) -> None:
    bits = random_bits([seed for seed, _ in rows], [position for _, position in rows], stream)
    assert bits.tolist() == [_bits(seed & _MASK, position, stream) for seed, position in rows]


def test_draws_stay_what_they_were_in_earlier_versions() -> None:
    # Results that were recorded with a seed must be drawn again by every later version.
    recorded = [2558736989570252433, 3400964856525257824, 12793040940332582595, 18159682518515982810]
    assert random_bits([0, 0, 1, -1], [0, 1, 0, 0]).tolist() == recorded
    assert uniforms([0], [0]).tolist() == [0.13870941014555427]
    assert continuation_seed(0, 1) == 14759717523909914316 >> 1


def test_uniforms_have_53_bits_and_stay_below_one() -> None:
    drawn = uniforms(range(10_000), np.arange(10_000))
    assert drawn.dtype == np.float64 and drawn.min() >= 0 and drawn.max() < 1
    assert np.all(drawn * 2.0**53 == np.floor(drawn * 2.0**53))
    # Half of all multiples of 2^-53 are odd: the last bit is in use.
    assert 4_700 < np.sum((drawn * 2.0**53) % 2 == 1) < 5_300


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**200)])
def test_positions_of_a_seed_are_uniform(seed: int) -> None:
    drawn = uniforms([seed] * 50_000, np.arange(50_000))
    assert stats.kstest(drawn, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("position", [0, 1, 4095])
def test_neighbouring_seeds_are_uniform_at_a_position(position: int) -> None:
    drawn = uniforms(range(-25_000, 25_000), np.full(50_000, position))
    assert stats.kstest(drawn, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("lag_seed,lag_position", [(0, 1), (1, 0), (1, 1), (1, -1), (2**32, 0), (0, 2**20)])
def test_neighbours_are_independent(lag_seed: int, lag_position: int) -> None:
    seeds = [seed for seed in range(200) for _ in range(200)]
    positions = np.tile(np.arange(1, 201), 200)
    here = uniforms(seeds, positions)
    there = uniforms([seed + lag_seed for seed in seeds], positions + lag_position)
    assert abs(stats.pearsonr(here, there).statistic) < 4 / np.sqrt(len(here))
    # Joint uniformity over a 16 x 16 grid, which a correlation would not see.
    counts, _, _ = np.histogram2d(here, there, bins=16, range=[[0, 1], [0, 1]])
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_every_bit_of_seed_and_position_flips_half_of_the_output() -> None:
    base = random_bits([12345] * 64, [678] * 64)
    flipped_seeds = random_bits([12345 ^ (1 << bit) for bit in range(64)], [678] * 64)
    flipped_positions = random_bits([12345] * 40, [678 ^ (1 << bit) for bit in range(40)])
    for flipped in (flipped_seeds, flipped_positions):
        distance = [(int(a) ^ int(b)).bit_count() for a, b in zip(base, flipped, strict=False)]
        assert 28 < np.mean(distance) < 36 and min(distance) > 10


def test_streams_differ() -> None:
    drawn = {stream: uniforms([7] * 20_000, np.arange(20_000), stream) for stream in Stream}
    for first in Stream:
        for second in Stream:
            if first < second:
                assert abs(np.corrcoef(drawn[first], drawn[second])[0, 1]) < 0.03


def test_seeds_of_any_size_are_told_apart() -> None:
    powers = (0, 63, 64, 70, 128, 20_000)
    seeds = {sign * 2**power + near for sign in (1, -1) for power in powers for near in (-1, 0, 1)}
    folded = {fold_seed(seed) for seed in seeds}
    assert len(folded) == len(seeds) and all(0 <= value <= _MASK for value in folded)


def test_continuations_have_seeds_of_their_own() -> None:
    for seed in (0, -5, 2**90):
        seeds = [continuation_seed(seed, index) for index in range(1000)]
        assert seeds[0] == seed
        assert len({fold_seed(s) for s in seeds}) == 1000
        assert all(type(s) is int and 0 <= s < 2**63 for s in seeds[1:])
        # Continuation i of one seed is no continuation of its neighbour.
        assert not set(seeds[1:]) & {continuation_seed(seed + 1, index) for index in range(1000)}


def test_no_rows_draw_nothing() -> None:
    assert uniforms([], []).shape == (0,)


def test_the_hash_needs_no_torch() -> None:
    code = "import sys, minivllm.sampling.random; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
