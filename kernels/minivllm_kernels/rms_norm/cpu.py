"""How a CPU does it in float32: the residual sum, the sum of squares and the scaling, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from minivllm_kernels.cpu_threads import address, cpu_kernel, float_bits, thread_num
from minivllm_kernels.cpu_vectors import f32_at, f64_of_bits, sum_of_squares


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None = None) -> Tensor:
    """Norm each row of x, or of the residual stream after x was added to it.

    Args:
        x: [N, C] float32 contiguous, on the CPU.
        weight: [C].
        eps: added to the mean square.
        residual: [N, C]; x is added to it in place. None norms x alone.

    Returns:
        [N, C], a new tensor.
    """
    num_rows, size = x.shape
    out = x.new_empty(num_rows, size)
    stream = 0 if residual is None else address(residual)
    _rms_norm(address(x), address(weight), stream, address(out), num_rows, size, float_bits(eps))
    return out


@cpu_kernel(7)
def _rms_norm(a: Any) -> None:
    num_rows, size, eps, num_threads = a[4], a[5], f64_of_bits(a[6]), a[7]
    weight = f32_at(a[1])
    thread = thread_num()
    for row in range(num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads):
        offset = 4 * row * size
        x, out = f32_at(a[0] + offset), f32_at(a[3] + offset)
        if a[2] != 0:
            stream = f32_at(a[2] + offset)
            for i in range(size):
                stream[i] += x[i]
            x = stream
        scale = np.float32(1.0 / np.sqrt(sum_of_squares(x, size) / size + eps))
        for i in range(size):
            out[i] = x[i] * scale * weight[i]
