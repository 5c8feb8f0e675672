"""How many blocks the K/V pool has: the same rule on a device and in a simulation of one. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable

from minivllm.config import EngineConfig

CPU_POOL_BYTES = 256 * 1024 * 1024


def pool_blocks(
    config: EngineConfig, *, bytes_per_block: int, max_model_len: int, free_bytes: Callable[[], int] | None
) -> int:
    """Blocks of the pool: as asked, or as many as its memory holds, but no more than could ever be used.

    Args:
        config: the engine's.
        bytes_per_block: K/V and whatever else is kept of a block's tokens.
        max_model_len: longest sequence.
        free_bytes: what a GPU leaves for K/V; None on a CPU.

    Raises:
        ValueError: not even one block.
    """
    cache = config.cache
    if cache.num_blocks is not None:
        return cache.num_blocks
    most = config.scheduler.max_num_seqs * math.ceil(max_model_len / cache.block_size)
    if cache.memory_bytes is not None:
        num_bytes, key = cache.memory_bytes, f"cache.memory_bytes={cache.memory_bytes}"
    elif free_bytes is not None:
        num_bytes = free_bytes()
        key = f"cache.gpu_memory_fraction={cache.gpu_memory_fraction}, which leaves {num_bytes} bytes for K/V"
    else:
        num_bytes, key = CPU_POOL_BYTES, "cache.memory_bytes"
    affordable = num_bytes // bytes_per_block
    if affordable < 1:
        raise ValueError(f"{key}: must hold one block of {cache.block_size} tokens, {bytes_per_block} bytes")
    return min(affordable, most)


def swap_blocks(config: EngineConfig, bytes_per_block: int) -> int:
    """Blocks that fit into host memory: as asked, or as many as its bytes hold."""
    preemption = config.preemption
    if preemption.num_swap_blocks is not None:
        return preemption.num_swap_blocks
    if preemption.swap_bytes is None:
        return 0
    affordable = preemption.swap_bytes // bytes_per_block
    if affordable < 1:
        raise ValueError(
            f"preemption.swap_bytes={preemption.swap_bytes}: must hold one block of {config.cache.block_size} tokens, "
            f"{bytes_per_block} bytes"
        )
    return affordable
