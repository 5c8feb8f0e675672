"""How a product with a weight of codes is cut up, and from how many rows on it is left to cuBLAS.

No timing decides anything here, so that a run can be repeated. All of it is arithmetic, not yet a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from minivllm_kernels.int4_linear.layout import STRETCH

# Above this many rows the weight is unpacked into memory once and multiplied by cuBLAS; see `dequantizes`.
_DEQUANTIZES_ABOVE = 256
# Of all stages of a program: four programs share the 227 KB of an SM's shared memory, or two.
_SMALL_SHARED_BYTES = 48 * 1024
_LARGE_SHARED_BYTES = 96 * 1024
_MAX_SPLITS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class CodesConfig:
    """A launch: tiles of `block_m` rows and `block_n` outputs, the inputs cut into `num_splits` parts."""

    block_m: int
    block_n: int
    num_splits: int
    num_warps: int
    num_stages: int


def dequantizes(num_rows: int) -> bool:
    """Whether so many rows are multiplied by cuBLAS, after the whole weight was unpacked into 16 bits.

    Unpacking 4 bits moves 2.5 bytes a weight: 0.58 ps on an H200, where a row of cuBLAS takes 2.9 fs a weight at 700
    TFLOP/s. That is as much as cuBLAS at 200 rows and a tenth of it at 2048. A kernel that unpacks as it goes and
    reaches 55 % of cuBLAS is faster up to about 250 rows.
    """
    return num_rows > _DEQUANTIZES_ABOVE


@lru_cache(maxsize=4096)
def choose_config(
    num_rows: int,
    num_out: int,
    num_in: int,
    *,
    bits: int,
    dtype: torch.dtype,
    num_sms: int,
    batch_invariant: bool = False,
) -> CodesConfig:
    """Tiles for [num_rows, num_in] times [num_out, num_in].

    Up to 32 rows memory is all that counts: tiles of 64 outputs, of whose programs four fit an SM and three are enough
    to draw its share of bandwidth. Above, programs read x from L2 more often than the weight from memory, 64 rows once
    for each tile of outputs: tiles are 128 wide, of eight warps, and while one of an SM's two programs waits for its
    product the other unpacks.

    Args:
        batch_invariant: one tile and no splits, whatever the number of rows.
        num_sms: of the GPU.
    """
    if dtype is torch.float32:
        # No tensor cores: it has to be right, and to fit the registers.
        return CodesConfig(block_m=16, block_n=32, num_splits=1, num_warps=4, num_stages=2)
    if batch_invariant:
        block_m, block_n, num_warps, shared_bytes = 64, 64, 4, _LARGE_SHARED_BYTES
    elif num_rows <= 32:
        block_m, block_n, num_warps, shared_bytes = (16 if num_rows <= 16 else 32), 64, 4, _SMALL_SHARED_BYTES
    else:
        block_m, block_n, num_warps, shared_bytes = 64, 128, 8, _LARGE_SHARED_BYTES
    num_splits = 1
    if not batch_invariant:
        num_splits = choose_splits(
            num_tiles=-(-num_rows // block_m) * -(-num_out // block_n),
            num_steps=-(-num_in // STRETCH),
            programs=3 if num_warps == 4 else 2,
            overhead=1 if num_warps == 4 else 2,
            num_sms=num_sms,
        )
    stage_bytes = block_n * STRETCH * bits // 8 + block_m * STRETCH * dtype.itemsize
    return CodesConfig(
        block_m=block_m,
        block_n=block_n,
        num_splits=num_splits,
        num_warps=num_warps,
        num_stages=max(2, min(6, shared_bytes // stage_bytes)),
    )


def choose_splits(*, num_tiles: int, num_steps: int, programs: int, overhead: int, num_sms: int) -> int:
    """Into how many parts the inputs are cut, for the SM that has most to do to be done first.

    Args:
        num_tiles: of the output.
        num_steps: of a program's loop over all inputs.
        programs: how many it takes to keep an SM busy; fewer have that much less of its speed each.
        overhead: of starting and merging a program, in steps.
        num_sms: of the GPU.
    """

    def cost(num_splits: int) -> float:
        of_an_sm = max(1, -(-num_tiles * num_splits // num_sms))
        return of_an_sm * (-(-num_steps // num_splits) + overhead) * max(1.0, programs / of_an_sm)

    # The least of those that cost the same.
    best = min(range(1, min(_MAX_SPLITS, num_steps) + 1), key=cost)
    # No part is empty.
    return -(-num_steps // -(-num_steps // best))
