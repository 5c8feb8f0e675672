"""How a GPU does it: one row a program, held in registers from its only load to its only store.

Bytes decide. `rms_norm` reads and writes a row once, `add_rms_norm_` reads two and writes two: at 8192 rows of 4096 in
bf16 that is 134 and 268 MB, 31 and 62 us of an H200's 4.3 TB/s. At one row it is a launch and two waits for memory:
the weight is asked for with the row, not after its sum of squares.

How a row is summed depends on its length alone, so a row's result is bitwise the same in any batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from minivllm_kernels.ahead_of_time import Specialisation

# A row lies in the registers of one program.
MAX_SIZE = 16_384


@triton.jit
def _rms_norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    eps,
    stride_x,
    stride_residual,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < SIZE
    x = tl.load(x_ptr + row * stride_x + offs, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + offs, mask=mask, other=0.0)
    dtype = x.dtype
    if residual_ptr is not None:
        at = residual_ptr + row * stride_residual + offs
        residual = tl.load(at, mask=mask, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(residual.dtype)
        tl.store(at, x, mask=mask)
    x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps)
    # Hugging Face rounds between the two factors; in float32 that is nothing.
    normed = (x * scale).to(dtype).to(tl.float32) * weight.to(tl.float32)
    tl.store(out_ptr + row * SIZE + offs, normed.to(dtype), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Norm each row.

    Args:
        x: [N, C], C at most 16384, a row contiguous, at any stride.
        weight: [C].
        eps: added to the mean square.

    Returns:
        [N, C] contiguous, in the dtype of x; float32 inside, rounded before the weight and after, as Hugging Face does.
    """
    return _launch(x, None, weight, eps)


def add_rms_norm_(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Add x to the residual stream in place, rounded to its dtype, and norm what stands there then.

    Args:
        x, weight, eps: as above.
        residual: [N, C], a row contiguous, at any stride.
    """
    assert residual.shape == x.shape and residual.stride(1) == 1
    return _launch(x, residual, weight, eps)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    num_rows, size = x.shape
    assert x.stride(1) == 1 and weight.is_contiguous() and weight.shape == (size,)
    assert size <= MAX_SIZE, f"rows of {size} do not fit a program's registers"
    out = torch.empty((num_rows, size), dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    block, num_warps = _tile(size)
    _rms_norm[(num_rows,)](
        x,
        residual,
        weight,
        out,
        eps,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        SIZE=size,
        BLOCK=block,
        num_warps=num_warps,
    )
    return out


def _tile(size: int) -> tuple[int, int]:
    """Elements and warps: a load of 16 bytes of half precision a thread, as far as 16 warps go."""
    block = triton.next_power_of_2(size)
    return block, max(1, min(16, block // (32 * 8)))


def specialisations() -> Iterator[Specialisation]:
    """Hidden sizes of the reference model, of Qwen3-0.6B, of 8B models, one that is no power of two, and the widest."""
    from minivllm_kernels.ahead_of_time import launches_of

    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for size in (256, 1024, 2560, 4096, MAX_SIZE):
            x = torch.empty(8, size, dtype=dtype, device="meta")
            name = f"{str(dtype).removeprefix('torch.')}-C{size}"
            yield from launches_of(f"rms_norm-{name}", rms_norm, x, x[0], eps=1e-6)
            yield from launches_of(f"add_rms_norm-{name}", add_rms_norm_, x, x.clone(), x[0], eps=1e-6)
