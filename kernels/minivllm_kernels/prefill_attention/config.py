"""Which tiles prefill attention works in, from shapes alone: no timing, so that a run repeats bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

# Multiprocessors of an H100 or H200: fewer programs than these leave some idle.
NUM_MULTIPROCESSORS = 132


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillConfig:
    """How one launch cuts its work. With `block_n` fixed, a query's result does not depend on chunks or neighbours.

    Args:
        block_m: rows of a program; a row is a (token, head of the K/V head's group).
        block_n: keys of a tile, a power of two.
        num_warps, num_stages: Triton's.
        overlap: multiply the next tile's scores while this tile's softmax runs. For 16-bit K/V on Hopper, whose
            multiplication is asynchronous.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    overlap: bool = False


def batch_invariant_config(
    *, head_dim: int, group_size: int, num_kv_heads: int, dtype_bytes: int, quantized: bool, hopper: bool
) -> PrefillConfig:
    """One configuration for batches of any shape, that of a single warp group: a query's bits depend on its keys alone,
    whether it comes in a prompt, in a chunk or as a decode. Arguments as below."""
    rows = 64 // group_size
    return choose_config(
        head_dim=head_dim,
        group_size=group_size,
        num_kv_heads=num_kv_heads,
        num_tokens=rows,
        max_query_len=rows,
        dtype_bytes=dtype_bytes,
        quantized=quantized,
        hopper=hopper,
    )


def choose_config(
    *,
    head_dim: int,
    group_size: int,
    num_kv_heads: int,
    num_tokens: int,
    max_query_len: int,
    dtype_bytes: int,
    quantized: bool,
    hopper: bool,
) -> PrefillConfig:
    """The configuration of a launch.

    `block_n` follows from head size, dtypes and chip alone: batches of any shape sum a query's keys in the same tiles.

    Args:
        num_tokens: N, padding included.
        max_query_len: queries of the longest request.
        dtype_bytes: of a query's element.
        quantized: K/V in 8 bits.
        hopper: compute capability 9, where `wgmma` takes 64 rows a warp group.
    """
    rows = max_query_len * group_size
    if dtype_bytes == 4:
        # Plain multiply-adds, no tensor cores. Larger tiles do not fit into registers.
        return PrefillConfig(block_m=16, block_n=32, num_warps=8, num_stages=2)

    # The accumulator takes block_m * head_dim floats of a multiprocessor's 65,536, the scores twice block_m * block_n.
    if hopper:
        block_n = 128 if head_dim <= 64 else 64 if head_dim <= 128 else 32
    else:
        block_n = 64 if head_dim <= 64 else 32
    num_stages = 3 if head_dim <= 128 else 2
    if rows <= 32 or (head_dim > 128 and not hopper):
        block_m = 16 if rows <= 16 else 32
        return PrefillConfig(block_m=block_m, block_n=block_n, num_warps=4, num_stages=num_stages)
    # Tiles of 128 rows read each key half as often as tiles of 64, but must be enough to go round.
    num_programs = -(-num_tokens * group_size // 128) * num_kv_heads
    if rows <= 64 or num_programs < NUM_MULTIPROCESSORS:
        return PrefillConfig(block_m=64, block_n=block_n, num_warps=4, num_stages=num_stages)
    overlap = hopper and not quantized and head_dim <= 128
    return PrefillConfig(block_m=128, block_n=block_n, num_warps=8, num_stages=num_stages, overlap=overlap)
