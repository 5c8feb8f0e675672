"""How decode attention is cut up: tiles from the shapes of a model, splits from the size of a batch.

Decoding reads every key and value once and does next to nothing with it, so what counts is how many bytes are on their
way to each SM. By Little's law an H200 needs 4.3 TB/s x 0.8 us = 3.4 MB in flight, 26 KB an SM. A tile is the keys and
values that a program asks for at once: 32 KB, two of them ahead of the one computed with, three programs an SM.

No timing decides anything here, so that a run can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch

# Keys and values of one tile.
_TILE_BYTES = 32 * 1024
# What a program keeps in shared memory beside its tiles: queries, probabilities, what warps tell each other.
_OTHER_SHARED_BYTES = 8 * 1024
# Of an SM of an H200 (and of an H100). Fewer programs fit elsewhere; then some of them wait, and nothing breaks.
_SHARED_BYTES = 227 * 1024
# An H200's (and an H100's).
_DEFAULT_NUM_SMS = 132
# However many splits there are room for, the one program that merges reads them all.
_MAX_SPLITS = 64
# Splits kept ready for contexts far longer than the batch's others. Where they find no keys they cost about a
# microsecond of a program's place, hidden behind the programs that do read.
_SPARE_SPLITS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """The tiles of `paged_decode`, and the rule by which one context is split.

    A context is cut into `even_splits` equal parts, but into none shorter than `min_split_size` keys nor longer than
    `max_split_size`, unless more than `num_splits` would be needed; one of two short parts is left whole. All sizes
    are rounded up to tiles. The rule sees a row's own length alone: with one config for all batches, a row's result
    does not depend on what shares the batch, not by a bit.

    Args:
        block_n: keys of a tile, a power of two from 16 up.
        num_warps, num_stages: Triton's; `num_stages - 1` tiles are on their way or in use.
        num_splits: programs launched for each request and key/value head, the most splits it can have.
        even_splits: at most `num_splits`.
        min_split_size, max_split_size: in keys.
    """

    block_n: int
    num_warps: int = 4
    num_stages: int = 3
    num_splits: int
    even_splits: int
    min_split_size: int = 128
    max_split_size: int = 2048

    def __post_init__(self) -> None:
        assert self.block_n >= 16 and self.block_n & (self.block_n - 1) == 0, f"block_n={self.block_n}"
        assert 1 <= self.even_splits <= self.num_splits, f"{self.even_splits} even of {self.num_splits} splits"
        assert 1 <= self.min_split_size <= self.max_split_size, "no split fits"


def block_n_for(head_dim: int, itemsize: int) -> int:
    """Keys of a tile of about 32 KB. For the arguments see `decode_config`."""
    return max(16, min(128, _TILE_BYTES // (2 * head_dim * itemsize)))


@lru_cache(maxsize=4096)
def decode_config(*, num_pairs: int, max_keys: int, head_dim: int, itemsize: int, num_sms: int) -> DecodeConfig:
    """For the least time at one batch size.

    One wave of programs that are all resident, where the pairs alone do not make one; contexts of other lengths than
    expected then cost no second wave. From there on a pair is one program, and only long contexts are split.

    Args:
        num_pairs: requests times key/value heads.
        max_keys: of the longest context, an upper bound: the lengths are on the device.
        head_dim: padded to a power of two.
        itemsize: of an element of a tile, in bytes: as in the cache, or 4 where float32 is computed with.
        num_sms: of the GPU.
    """
    block_n, num_stages = block_n_for(head_dim, itemsize), 3
    shared_bytes = (num_stages - 1) * 2 * block_n * head_dim * itemsize + _OTHER_SHARED_BYTES
    resident = num_sms * max(1, min(4, _SHARED_BYTES // shared_bytes))
    shape = DecodeConfig(block_n=block_n, num_stages=num_stages, num_splits=1, even_splits=1)
    useful = -(-max_keys // shape.min_split_size)
    even_splits = max(1, min(resident // max(1, num_pairs), useful, _MAX_SPLITS))
    spare = min(-(-max_keys // shape.max_split_size), _SPARE_SPLITS)
    return DecodeConfig(
        block_n=block_n, num_stages=num_stages, num_splits=max(even_splits, spare), even_splits=even_splits
    )


@cache
def num_sms_of(device: torch.device) -> int:
    """SMs of a GPU, asked once; an H200's where there is no GPU."""
    if device.type != "cuda":
        return _DEFAULT_NUM_SMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
