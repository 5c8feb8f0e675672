"""Rounding of rows to 8 bits, and the product of 8-bit activations and weights, of integers or of floats.

The weight is the first operand and the rows are the columns of an instruction, as in `int4_linear.product`: few rows
are padded to 16 columns, not to 64 rows. Both operands go from memory to shared memory to the tensor cores. Few rows
are split along the inputs; the last program of a tile to arrive adds the splits up in their order.

Sums of integers are exact in int32 up to 133,000 inputs, so that how they are split changes no bit. Hopper's product of
float8 keeps about 14 bits of a sum while it adds to it: a relative error near 2 % where thousands of inputs cancel
(arXiv 2412.19437, 3.3.2), which would be read as a fault of the format. Here the tensor cores add 128 inputs, and those
sums are added in float32: 128 x 128 additions beside 128 x 128 x 128 products, and twice the registers for sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minivllm_kernels.int4_linear.layout import NUM_COUNTERS
from minivllm_kernels.int4_linear.product.kernel import merge_splits, num_merged
from minivllm_kernels.int8_dynamic_linear.config import BLOCK_K, EightBitConfig, PackedRows

if TYPE_CHECKING:
    from minivllm_kernels.ahead_of_time import Specialisation

# Tiles of rows whose programs follow each other, so that they share outputs in L2.
_GROUP_M = 16


def quantize_rows(x: Tensor, input_scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows: see `int8_dynamic_linear.kernel` and `fp8_linear.kernel`."""
    num_rows, num_in = x.shape
    assert x.stride(1) == 1 and (input_scale is None or input_scale.numel() == 1)
    codes = torch.empty((num_rows, num_in), dtype=dtype, device=x.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    if num_rows == 0:
        return codes, scales
    block = triton.next_power_of_2(num_in)
    _quantize_rows[(num_rows,)](
        x,
        input_scale,
        codes,
        scales,
        x.stride(0),
        IN=num_in,
        BLOCK=block,
        LARGEST=127.0 if dtype is torch.int8 else 448.0,
        # The interpreter knows no PTX.
        PTX=not triton.knobs.runtime.interpret,
        num_warps=max(1, min(16, block // 512)),
        num_stages=1,
    )
    return codes, scales


def product(
    x_codes: Tensor, x_scales: Tensor, packed: PackedRows, bias: Tensor | None, dtype: torch.dtype,
    config: EightBitConfig,
) -> Tensor:  # fmt: skip
    """scale_x * scale_w * (x_codes W_codes^T) + b: [N, out] of `dtype`."""
    (num_rows, num_in), num_out = x_codes.shape, len(packed.codes)
    assert packed.codes.shape[1] == num_in and packed.codes.dtype is x_codes.dtype
    out = torch.empty((num_rows, num_out), dtype=dtype, device=x_codes.device)
    if num_rows == 0:
        return out
    is_float = packed.codes.dtype is not torch.int8
    num_tiles = triton.cdiv(num_rows, config.block_m) * triton.cdiv(num_out, config.block_n)
    partial = None
    if config.num_splits > 1:
        assert num_tiles <= NUM_COUNTERS, f"{num_tiles} tiles are too many to be merged"
        kind, elements = torch.float32 if is_float else torch.int32, config.block_m * config.block_n
        partial = torch.empty((num_tiles, config.num_splits, elements), dtype=kind, device=x_codes.device)
    _product[(num_tiles, config.num_splits)](
        num_rows,
        triton.cdiv(triton.cdiv(num_in, BLOCK_K), config.num_splits),
        x_codes,
        x_scales,
        packed.codes,
        packed.scales,
        bias,
        partial,
        None if partial is None else packed.counters,
        out,
        OUT=num_out,
        IN=num_in,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=BLOCK_K,
        GROUP_M=_GROUP_M,
        MERGE_SPLITS=num_merged(config.block_m, config.block_n),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


@triton.jit
def _quantize_rows(
    x_ptr, input_scale_ptr, codes_ptr, scales_ptr, stride_x,
    IN: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """One row, all of it in registers."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_x + offs, mask=offs < IN, other=0.0).to(tl.float32)
    if input_scale_ptr is None:
        # The bits of magnitudes are in the order of magnitudes, infinity and NaN at the end: neither is lost.
        bits = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0, keep_dims=True)
        largest = bits.to(tl.float32, bitcast=True)
        scale = tl.div_rn(largest, tl.full((1,), LARGEST, tl.float32))
        # By the inverse, as PyTorch divides a number by a tensor.
        inverse = tl.div_rn(tl.full((1,), 1.0, tl.float32), tl.where(largest > 0, largest, 1.0)) * LARGEST
    else:
        scale = tl.load(input_scale_ptr + tl.arange(0, 1)).to(tl.float32)
        inverse = tl.div_rn(tl.full((1,), 1.0, tl.float32), scale)
    x = x * inverse
    x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
    if PTX:
        codes = x
        if LARGEST == 127.0:
            # Halves to even. As an addition of 1.5 * 2^23 it would be contracted with the product, and rounded once.
            codes = tl.inline_asm_elementwise("cvt.rni.s32.f32 $0, $1;", "=r,r", [x], tl.int32, is_pure=True, pack=1)
    else:
        # The interpreter contracts nothing, but cuts floats of 8 bits off: it is handed what they can hold. A number's
        # last digit is an eighth of its power of two, or of 2^-6 where that is larger.
        unit = 1.0
        if LARGEST != 127.0:
            unit = tl.maximum((x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True), 0.015625) / 8
        codes = (x + unit * 12582912.0) - unit * 12582912.0
        # Zeros with their sign.
        codes = tl.where(codes == 0, x * 0.0, codes)
    tl.store(codes_ptr + row * IN + offs, codes.to(codes_ptr.dtype.element_ty), mask=offs < IN)
    tl.store(scales_ptr + row + tl.arange(0, 1), scale)


@triton.jit(do_not_specialize=["num_rows", "split_steps"])
def _product(
    num_rows, split_steps, x_ptr, x_scales_ptr, weight_ptr, weight_scales_ptr, bias_ptr,
    # int32 or float32 [tiles, splits, BLOCK_N * BLOCK_M] and int32 [tiles]; None for a single split.
    partial_ptr, counters_ptr, out_ptr,
    OUT: tl.constexpr, IN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, MERGE_SPLITS: tl.constexpr,
):  # fmt: skip
    IS_FLOAT: tl.constexpr = x_ptr.dtype.element_ty != tl.int8
    NUM_STEPS: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K
    # Down the rows of a group first, then to the next outputs: the weight is read once, the group's rows stay in L2.
    num_m = tl.cdiv(num_rows, BLOCK_M)
    num_n: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    group = tile // (GROUP_M * num_n)
    group_rows = tl.minimum(num_m - group * GROUP_M, GROUP_M)
    within = tile - group * (GROUP_M * num_n)
    pid_m = group * GROUP_M + within % group_rows
    pid_n = within // group_rows
    offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows beyond the batch are zeros without a read; outputs beyond the weight repeat the last, and are not stored.
    mask_m = (offs_m < num_rows)[None, :]
    outputs = offs_n if OUT % BLOCK_N == 0 else tl.minimum(offs_n, OUT - 1)

    first = 0
    end = NUM_STEPS
    if partial_ptr is not None:
        first = tl.program_id(1).to(tl.int64) * split_steps
        end = tl.minimum(first + split_steps, NUM_STEPS)
    # [BLOCK_K, BLOCK_M], transposed by its addresses.
    x_at = x_ptr + offs_m[None, :] * IN + (first * BLOCK_K + offs_k)[:, None]
    weight_at = weight_ptr + outputs[:, None] * IN + (first * BLOCK_K + offs_k)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32 if IS_FLOAT else tl.int32)
    for step in range(first, end):
        if IN % BLOCK_K == 0:
            weight = tl.load(weight_at)
            x = tl.load(x_at, mask=mask_m, other=0.0)
        else:
            mask_k = offs_k < IN - step * BLOCK_K
            weight = tl.load(weight_at, mask=mask_k[None, :], other=0.0)
            x = tl.load(x_at, mask=mask_m & mask_k[:, None], other=0.0)
        if IS_FLOAT:
            acc = tl.dot(weight, x, acc, max_num_imprecise_acc=BLOCK_K)
        else:
            acc = tl.dot(weight, x, acc, out_dtype=tl.int32)
        weight_at += BLOCK_K
        x_at += BLOCK_K

    is_last = True
    if partial_ptr is not None:
        is_last, acc = merge_splits(acc, tile, partial_ptr, counters_ptr, BLOCK_N, BLOCK_M, MERGE_SPLITS)
    if is_last:
        x_scale = tl.load(x_scales_ptr + offs_m, mask=offs_m < num_rows, other=0.0)
        result = acc.to(tl.float32) * x_scale[None, :] * tl.load(weight_scales_ptr + outputs)[:, None]
        if bias_ptr is not None:
            result += tl.load(bias_ptr + outputs).to(tl.float32)[:, None]
        mask = mask_m if OUT % BLOCK_N == 0 else mask_m & (offs_n < OUT)[:, None]
        out_at = out_ptr + offs_m[None, :] * OUT + offs_n[:, None]
        tl.store(out_at, result.to(out_ptr.dtype.element_ty), mask=mask)


def specialise(
    op: str, pack: Callable[..., PackedRows], linear: Callable[..., Tensor], dtype: torch.dtype, num_rows: int,
    num_out: int, num_in: int, *, what: str = "", batch_invariant: bool = False, **budget: Any,
) -> Iterator[Specialisation]:  # fmt: skip
    """The product that `linear` launches for a weight of the op's kind; the rounding has its own."""
    from minivllm_kernels.ahead_of_time import launches_of

    kind = torch.int8 if op == "int8_dynamic_linear" else torch.float8_e4m3fn
    packed = pack(torch.empty(num_out, num_in, dtype=kind, device="meta"), torch.empty(num_out, device="meta"))
    x = torch.empty(num_rows, num_in, dtype=dtype, device="meta")
    name = f"{op}-{str(dtype).removeprefix('torch.')}-{num_out}x{num_in}-{what}N{num_rows}"
    if batch_invariant:
        budget["batch_invariant"] = True
    for one in launches_of(name, linear, x, packed, wgmma=True, **budget):
        if one.kernel is _product:
            yield one


def specialise_quantize(
    op: str, quantize: Callable[..., object], dtype: torch.dtype, num_in: int, *, with_scale: bool = False,
    **budget: Any,
) -> Iterator[Specialisation]:  # fmt: skip
    """The rounding of rows of so many inputs."""
    from minivllm_kernels.ahead_of_time import launches_of

    x = torch.empty(8, num_in, dtype=dtype, device="meta")
    scale = torch.empty(1, device="meta") if with_scale else None
    name = f"{op}-quantize-{str(dtype).removeprefix('torch.')}-{num_in}{'-scale' if with_scale else ''}"
    yield from launches_of(name, quantize, x, scale, **budget)
