"""Chance without a generator: what a request draws is a hash of (seed, request), the same in every run, whoever else is
there and however often one asks."""

from __future__ import annotations

from hashlib import blake2b
from statistics import NormalDist

_NORMAL = NormalDist()


def uniform(seed: int, request_id: int) -> float:
    """Uniform in (0, 1), both ends excluded; of 52 random bits."""
    raw = blake2b(f"{seed} {request_id}".encode(), digest_size=8).digest()
    return ((int.from_bytes(raw, "little") >> 12) + 0.5) / (1 << 52)


def standard_normal(seed: int, request_id: int) -> float:
    """Of mean 0 and variance 1."""
    return _NORMAL.inv_cdf(uniform(seed, request_id))
