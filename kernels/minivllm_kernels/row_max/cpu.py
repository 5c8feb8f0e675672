"""How a CPU does it in float32: the largest value of a row in vectors, then the first place that holds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minivllm_kernels.cpu_threads import address, cpu_kernel, thread_num
from minivllm_kernels.cpu_vectors import f32_at, find, i64_at, largest


def row_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's largest value and the first place that holds it.

    Args:
        x: [M, V] float32 contiguous, on the CPU.

    Returns:
        values [M], NaN where a row has one; places [M] int64, 0 there.
    """
    num_rows, size = x.shape
    values, places = x.new_empty(num_rows), torch.empty(num_rows, dtype=torch.int64)
    _row_max(address(x), address(values), places.data_ptr(), num_rows, size)
    return values, places


@cpu_kernel(5)
def _row_max(a: Any) -> None:
    values, places, num_rows, size, num_threads = f32_at(a[1]), i64_at(a[2]), a[3], a[4], a[5]
    thread = thread_num()
    for row in range(num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads):
        x = f32_at(a[0] + 4 * row * size)
        best = largest(x, size)
        values[row] = best
        places[row] = find(x, size, best)
