"""Random numbers without a generator: a uniform is a hash of (seed, position, stream).

A generator has a state, and a state has a history: the same request would draw other tokens after a preemption, beside
other requests, or with speculation. A counter-based hash (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC'11) has none. The mixing function is the finalizer of SplitMix64 (Steele et al., "Fast splittable pseudorandom number
generators", OOPSLA'14, figure 16; constants of Stafford's variant 13): a bijection of 64 bits in which every input bit
flips about half of the output bits. Seed, stream and position are absorbed one after the other, each followed by a full
mix, so neighbouring seeds and positions share nothing.

All arithmetic is modulo 2^64: numpy arrays of uint64 wrap silently, numpy scalars would warn, hence arrays throughout.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


class Stream(enum.IntEnum):
    """What a draw is for. Two purposes at one position must never share a uniform, or their outcomes would agree.

    Speculation (arXiv 2211.17192, section 2.3) draws a draft token, whether to accept it, and the replacement of a
    rejected one; a token that was not drafted is a TOKEN draw, as without speculation.
    """

    TOKEN = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3
    CONTINUATION = 4


def fold_seed(seed: int) -> int:
    """Fold any Python int to 64 bits: those of int64 are themselves, so no two of them meet; others are hashed."""
    if -(1 << 63) <= seed < 1 << 63:
        return seed & _MASK
    raw = seed.to_bytes(seed.bit_length() // 8 + 1, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def random_bits(seeds: Sequence[int], positions: ArrayLike, stream: ArrayLike = Stream.TOKEN) -> NDArray[np.uint64]:
    """64 random bits a row.

    Args:
        seeds: any Python ints, one a row.
        positions: [num_rows] int, 0 or more: the index in the request of the token being drawn.
        stream: what the bits are for, a `Stream`; or [num_rows] of them.
    """
    folded = np.fromiter(map(fold_seed, seeds), dtype=np.uint64, count=len(seeds))
    state = _mix(folded + _GOLDEN)
    state = _mix((state ^ np.asarray(stream, dtype=np.uint64)) + _GOLDEN)
    return _mix((state ^ np.asarray(positions, dtype=np.uint64)) + _GOLDEN)


def uniforms(seeds: Sequence[int], positions: ArrayLike, stream: ArrayLike = Stream.TOKEN) -> NDArray[np.float64]:
    """A uniform in [0, 1) a row, a multiple of 2^-53: every float64 in there that has the full resolution.

    Args: as `random_bits`.
    """
    return (random_bits(seeds, positions, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def continuation_seed(seed: int, index: int) -> int:
    """The seed of continuation `index` of a request with `n` > 1; continuation 0 draws what the request alone would.

    Returns:
        `seed` itself for index 0, else bits of a stream of their own, in `[0, 2^63)`: what a table's int64 can hold.
    """
    if index == 0:
        return seed
    return int(random_bits([seed], [index], Stream.CONTINUATION)[0] >> np.uint64(1))


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MULTIPLY_1
    state = (state ^ (state >> np.uint64(27))) * _MULTIPLY_2
    return state ^ (state >> np.uint64(31))
