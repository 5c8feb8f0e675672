"""How a CPU does it in float32: one pass over each row."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from minivllm_kernels.cpu_threads import address, cpu_kernel, thread_num
from minivllm_kernels.cpu_vectors import exp, f32_at

_ONE = np.float32(1.0)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up.

    Args:
        gate_up: [N, 2 * I] float32 contiguous, on the CPU; gate in the first half of a row.

    Returns:
        [N, I].
    """
    num_rows, width = gate_up.shape
    out = gate_up.new_empty(num_rows, width // 2)
    _silu_and_mul(address(gate_up), address(out), num_rows, width // 2)
    return out


@cpu_kernel(4)
def _silu_and_mul(a: Any) -> None:
    num_rows, size, num_threads = a[2], a[3], a[4]
    thread = thread_num()
    for row in range(num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads):
        gate, up = f32_at(a[0] + 8 * row * size), f32_at(a[0] + 8 * row * size + 4 * size)
        out = f32_at(a[1] + 4 * row * size)
        for i in range(size):
            out[i] = gate[i] / (_ONE + exp(-gate[i])) * up[i]
