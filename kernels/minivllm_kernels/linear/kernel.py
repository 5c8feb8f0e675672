"""How a GPU multiplies so that a row's result is bitwise the same whatever else is in the batch.

cuBLAS is faster, but picks a kernel by the number of rows, and with it the order in which a dot product is summed. Here
that order is fixed by the weight alone: one program sums the whole of `in`, in steps of BLOCK_K, with one instruction
shape (BLOCK_N is its width), and never splits it. Only how many rows a program takes grows with the batch, in whole
instructions of 64 rows; a row does not see the others of its instruction. It is what `execution.batch_invariant` runs.

Few rows read the weight once: 50 MB of [6144, 4096] in bf16 are 12 us of an H200's 4.3 TB/s. With a program for each
BLOCK_N columns and no split there may be fewer programs than SMs, so bandwidth has to come from what each has in
flight: tiles are as narrow as gives 64 programs where the weight allows it, and there are as many stages as fit the
shared memory of an A100 too. 64 programs of 64 columns with seven stages of 8 KB under way are 3.7 MB, more than the
2.6 MB that 4.3 TB/s at 600 ns need; 16 columns (out below 2048) have 1.8 MB. Many rows are bound by L2: 256 x 128 tiles
read a byte for 85 FLOPs, 256 x 64 for 51, which at 5.5 TB/s would allow 470 and 280 TFLOP/s of the 790 measured.
All of this is arithmetic on the tiles, not yet a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from minivllm_kernels.ahead_of_time import Specialisation

# Programs that read one weight at the same time, where it is wide enough for so many.
_MIN_PROGRAMS = 64
# Of a program, for all of its stages: what an A100 has.
_SHARED_BYTES = 160 * 1024
# Tiles of rows whose programs follow each other, so that they share columns in L2.
_GROUP_M = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearConfig:
    """A launch. `block_n` and `block_k` may depend on the weight alone, `block_m`, warps and stages on the rows too."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@triton.jit(do_not_specialize=["num_rows"])
def _linear(
    num_rows,
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    stride_x,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Down the rows of a group first, then to the next columns: the weight is read once, the group's rows stay in L2.
    num_m = tl.cdiv(num_rows, BLOCK_M)
    num_n: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    group = pid // (GROUP_M * num_n)
    group_size = tl.minimum(num_m - group * GROUP_M, GROUP_M)
    within = pid - group * (GROUP_M * num_n)
    pid_m = group * GROUP_M + within % group_size
    pid_n = within // group_size

    offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows beyond the batch are zeros without a read; columns beyond the weight repeat the last, and are not stored.
    mask_m = (offs_m < num_rows)[:, None]
    columns = offs_n if OUT % BLOCK_N == 0 else tl.minimum(offs_n, OUT - 1)
    x_at = x_ptr + offs_m[:, None] * stride_x + offs_k[None, :]
    # [BLOCK_K, BLOCK_N], transposed by its addresses: `in` is contiguous in memory.
    weight_at = weight_ptr + columns[None, :] * IN + offs_k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, IN, BLOCK_K):
        if IN % BLOCK_K == 0:
            x = tl.load(x_at, mask=mask_m, other=0.0)
            weight = tl.load(weight_at)
        else:
            mask_k = offs_k < IN - start
            x = tl.load(x_at, mask=mask_m & mask_k[None, :], other=0.0)
            weight = tl.load(weight_at, mask=mask_k[:, None], other=0.0)
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
        x_at += BLOCK_K
        weight_at += BLOCK_K
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + columns).to(tl.float32)[None, :]
    mask = mask_m if OUT % BLOCK_N == 0 else mask_m & (offs_n < OUT)[None, :]
    out_at = out_ptr + offs_m[:, None] * OUT + offs_n[None, :]
    tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=mask)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, config: LinearConfig | None = None) -> Tensor:
    """x W^T + b, summed in float32 and rounded once; a row of x gives the same bits in any batch.

    Args:
        x: [N, in], a row contiguous, at any stride.
        weight: [out, in] contiguous, of the same dtype; float32 is multiplied in full, not in tf32.
        bias: [out] or None.
        config: for tuning; another block_n or block_k may be another result.

    Returns:
        [N, out] contiguous.
    """
    (num_rows, num_in), num_out = x.shape, weight.shape[0]
    assert weight.shape[1] == num_in and weight.is_contiguous() and weight.dtype is x.dtype and x.stride(1) == 1
    out = torch.empty((num_rows, num_out), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    config = config or choose_config(num_rows, num_out, num_in, x.dtype)
    num_programs = triton.cdiv(num_rows, config.block_m) * triton.cdiv(num_out, config.block_n)
    _linear[(num_programs,)](
        num_rows,
        x,
        weight,
        bias,
        out,
        x.stride(0),
        OUT=num_out,
        IN=num_in,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP_M=_GROUP_M,
        PRECISION="ieee",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def choose_config(num_rows: int, num_out: int, num_in: int, dtype: torch.dtype) -> LinearConfig:
    """Tiles for [num_rows, num_in] times [num_out, num_in]: columns and depth by the weight, rows by the batch."""
    if dtype is torch.float32:
        # No tensor cores: a product is a chain of FMAs in the order of `in`, whatever the tile.
        block_m = 16 if num_rows <= 16 else 64
        return LinearConfig(block_m=block_m, block_n=32, block_k=32, num_warps=4, num_stages=5)
    block_n = next((n for n in (128, 64, 32) if triton.cdiv(num_out, n) >= _MIN_PROGRAMS), 16)
    # A row of shared memory as wgmma reads it is 64 deep; narrow tiles take two for fewer turns.
    block_k = min(64 if block_n >= 64 else 128, max(16, triton.next_power_of_2(num_in)))
    if num_rows <= 64:
        block_m, num_warps = 64, 4
    elif num_rows <= 512:
        block_m, num_warps = 128, 8
    else:
        block_m, num_warps = 256, 8
    stage_bytes = (block_m + block_n) * block_k * dtype.itemsize
    num_stages = max(2, min(8, _SHARED_BYTES // stage_bytes))
    return LinearConfig(block_m=block_m, block_n=block_n, block_k=block_k, num_warps=num_warps, num_stages=num_stages)


def specialisations() -> Iterator[Specialisation]:
    """[out, in] of the reference model, of Qwen3-0.6B and of 8B models, at each size of batch that has tiles of its
    own."""
    from minivllm_kernels.ahead_of_time import launches_of

    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        word = str(dtype).removeprefix("torch.")
        is_half = dtype is not torch.float32
        for num_out, num_in in ((384, 256), (1024, 3072), (6144, 4096), (24_576, 4096)):
            for num_rows in (1, 256, 4096) if is_half else (1, 256):
                x = torch.empty(num_rows, num_in, dtype=dtype, device="meta")
                weight = torch.empty(num_out, num_in, dtype=dtype, device="meta")
                name = f"linear-{word}-{num_out}x{num_in}-N{num_rows}"
                if is_half and (num_out, num_rows) == (24_576, 4096):
                    # Half of the registers are the 256 x 128 sums. Ampere's mma takes its operands from registers too
                    # and is 8 bytes short; Hopper's wgmma takes them from shared memory.
                    ampere = f"{name}-ampere"
                    yield from launches_of(ampere, linear, x, weight, max_spill_bytes=8, architectures=(80,))
                    yield from launches_of(name, linear, x, weight, wgmma=True, architectures=(90,))
                else:
                    yield from launches_of(name, linear, x, weight, wgmma=is_half)
        x = torch.empty(8, 300, dtype=dtype, device="meta")
        weight = torch.empty(300, 300, dtype=dtype, device="meta")
        yield from launches_of(f"linear-{word}-bias-300x300", linear, x, weight, weight[0])
