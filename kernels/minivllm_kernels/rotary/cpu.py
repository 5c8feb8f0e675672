"""How a CPU does it in float32: q and k of a token in one pass, in place; with the heads' norm in Qwen3."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from minivllm_kernels.cpu_threads import address, cpu_kernel, float_bits, thread_num
from minivllm_kernels.cpu_vectors import f32_at, f64_of_bits, i64_at, sum_of_squares


def rotate_(
    qkv: Tensor,
    positions: Tensor,
    rotations: Tensor,
    *,
    num_heads: int,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Norm (where there is a weight) and turn the first heads of every row, in place.

    The halves of a pair lie side by side, at features 2 i and 2 i + 1 of a head (the reference pairs i and i + D / 2).

    Args:
        qkv: [N, width] float32 contiguous, on the CPU.
        positions: [N] int64.
        rotations: [max_len, 1, D / 2] complex64, cos + i sin of each position's angles.
        num_heads: heads to turn; they are the first `num_heads * D` features of a row.
        norm_weight: [num_heads, D] of an RMSNorm over each head, before the rotation.
        eps: of that norm.
    """
    num_rows, width = qkv.shape
    weight = 0 if norm_weight is None else address(norm_weight)
    _rotate(
        address(qkv), positions.data_ptr(), rotations.data_ptr(), weight,
        num_rows, width, num_heads, 2 * rotations.shape[-1], float_bits(eps),
    )  # fmt: skip


@cpu_kernel(9)
def _rotate(a: Any) -> None:
    num_rows, width, num_heads, size, eps, num_threads = a[4], a[5], a[6], a[7], f64_of_bits(a[8]), a[9]
    positions = i64_at(a[1])
    thread = thread_num()
    for row in range(num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads):
        # Pairs of (cos, sin).
        turn = f32_at(a[2] + 4 * positions[row] * size)
        for head in range(num_heads):
            x = f32_at(a[0] + 4 * (row * width + head * size))
            if a[3] != 0:
                weight = f32_at(a[3] + 4 * head * size)
                scale = np.float32(1.0 / np.sqrt(sum_of_squares(x, size) / size + eps))
                for i in range(size):
                    x[i] = x[i] * scale * weight[i]
            for i in range(size // 2):
                even, odd, cos, sin = x[2 * i], x[2 * i + 1], turn[2 * i], turn[2 * i + 1]
                x[2 * i] = even * cos - odd * sin
                x[2 * i + 1] = odd * cos + even * sin
