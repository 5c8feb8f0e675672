"""Content keys of full blocks: a chain of hashes, so that a key stands for the block and everything before it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

ROOT = b""


def block_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Key of one full block after `parent` (`ROOT` for the first).

    128 bits of BLAKE2b: two different prefixes meeting under one key would serve wrong K/V in silence, so a
    fast hash that can be made to collide is no choice.
    """
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


def extend_keys(keys: list[bytes], token_ids: Sequence[int], num_tokens: int, block_size: int) -> None:
    """Append the keys of all full blocks in `token_ids[:num_tokens]` that `keys` does not hold yet."""
    for start in range(len(keys) * block_size, num_tokens - block_size + 1, block_size):
        keys.append(block_key(keys[-1] if keys else ROOT, token_ids[start : start + block_size]))
