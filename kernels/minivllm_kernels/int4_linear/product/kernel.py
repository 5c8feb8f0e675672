"""The product of activations and a weight of 4-bit or 8-bit codes, unpacked on the way to the tensor cores.

The weight is the first operand and the rows are the columns of an instruction: out^T = W x^T. Hopper's wgmma takes its
first operand from registers, where codes are unpacked, and its second from shared memory, where x arrives by
asynchronous copies; and few rows are padded to 16 columns, not to 64 rows. Ampere's mma takes both from registers.

- Unpacking (`unpack`) is 1.25 instructions a 4-bit code in float16, 1.5 in bfloat16. An SM that reads at full bandwidth
  (4.3 TB/s over 132 of them) meets 37 codes a cycle and issues 128 instructions: 3.4 a code, of which a shift, a mask
  and a conversion each would be 4.
- Scales multiply the sum of each group in float32, not the codes: operands stay whole numbers, and with 16 rows and
  groups of 128 that is an eighth of an instruction a code, where scaling codes is a half. At 64 rows it is a half too,
  at 128 one, beside a tile's product that is then bound by the tensor cores. The price is that a warpgroup waits for
  its product after each group; the other programs of an SM fill that.
- Words, scales and zeros all travel by asynchronous copies some stages ahead. As they lie in memory (`layout`), no
  thread moves a code to another: the loop has no shuffle and stores nothing to shared memory.
- Few rows are split along the inputs so that all SMs read. The last program of a tile to arrive adds the splits up in
  their order, so that results can be repeated, and leaves the tile's counter at zero for the next launch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minivllm_kernels.int4_linear.config import CodesConfig, choose_config
from minivllm_kernels.int4_linear.layout import NUM_COUNTERS, STRETCH, PackedCodes, padded_out
from minivllm_kernels.int4_linear.unpack import unpack_ptx
from minivllm_kernels.paged_attention.decode_config import num_sms_of

# Tiles of rows whose programs follow each other, so that they share outputs in L2.
_GROUP_M = 16
# Floats of splits that a merge asks for at once.
_MERGE_ELEMENTS = 4096


def codes_linear(x: Tensor, packed: PackedCodes, bias: Tensor | None, config: CodesConfig) -> Tensor:
    """x W^T + b by the kernel, whatever the number of rows. For the arguments see `int4_linear.kernel.linear`."""
    num_rows, num_out = x.shape[0], packed.num_out
    out = torch.empty((num_rows, num_out), dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    num_tiles = triton.cdiv(num_rows, config.block_m) * triton.cdiv(num_out, config.block_n)
    num_stretches = packed.words.shape[0]
    partial = None
    if config.num_splits > 1:
        assert num_tiles <= NUM_COUNTERS, f"{num_tiles} tiles are too many to be merged"
        tile_elements = config.block_m * config.block_n
        partial = torch.empty((num_tiles, config.num_splits, tile_elements), dtype=torch.float32, device=x.device)
    _product[(num_tiles, config.num_splits)](
        num_rows,
        triton.cdiv(num_stretches, config.num_splits),
        x,
        packed.words,
        packed.scales,
        packed.zeros,
        bias,
        partial,
        None if partial is None else packed.counters,
        out,
        x.stride(0),
        **_constants(packed),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        GROUP_M=_GROUP_M,
        MERGE_SPLITS=num_merged(config.block_m, config.block_n),
        STAGES=config.num_stages,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def codes_dequantize(packed: PackedCodes) -> Tensor:
    """The weight that the codes stand for: [out, in] in the dtype of activations, rounded once."""
    out = torch.empty((packed.num_out, packed.num_in), dtype=packed.dtype, device=packed.words.device)
    grid = (packed.words.shape[0], padded_out(packed.num_out) // 64)
    _dequantize[grid](
        packed.words, packed.scales, packed.zeros, out, **_constants(packed), BLOCK_N=64, num_warps=4, num_stages=1
    )
    return out


def num_merged(block_m: int, block_n: int) -> int:
    """Splits of a tile that are merged at once: as many as registers have room for."""
    return max(1, _MERGE_ELEMENTS // (block_m * block_n))


def choose(x: Tensor, packed: PackedCodes, batch_invariant: bool) -> CodesConfig:
    """What `linear` chooses for these tensors."""
    return choose_config(
        x.shape[0], packed.num_out, packed.num_in, bits=packed.bits, dtype=packed.dtype, num_sms=num_sms_of(x.device),
        batch_invariant=batch_invariant,
    )  # fmt: skip


def _constants(packed: PackedCodes) -> dict[str, Any]:
    # The interpreter knows no PTX, and float32 has a register for each number.
    asm = None
    if packed.dtype is not torch.float32 and not triton.knobs.runtime.interpret:
        asm = unpack_ptx(packed.bits, packed.dtype, has_zeros=packed.zeros is not None)
    return {
        "OUT": packed.num_out,
        # Rows of the weight in memory.
        "PADDED": padded_out(packed.num_out),
        "IN": packed.num_in,
        "GROUP_SIZE": packed.group_size,
        "STRETCH": STRETCH,
        "BITS": packed.bits,
        "ASM": asm,
    }


@triton.jit
def _rows_at(ptr, first_row, dtype: tl.constexpr, N: tl.constexpr):
    """Where scales or zeros of N rows lie in the first group."""
    if dtype == tl.float32:
        return ptr + first_row + tl.arange(0, N)
    else:
        return ptr + first_row // 2 + tl.arange(0, N // 16)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def _load_rows(at, dtype: tl.constexpr, N: tl.constexpr):
    """[N, 1] scales or zeros: the halves of word j are rows j and j + 8 of 16. float32 has no words."""
    words = tl.load(at)
    if dtype == tl.float32:
        return words[:, None]
    else:
        low = (words & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)
        high = (words >> 16).to(tl.int16).to(dtype, bitcast=True)
        return tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (N, 1))


@triton.jit
def _slice(words, zero, S: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr):
    """One slice in Triton's own words."""
    if BITS == 4:
        return ((words >> (4 * S)) & 15).to(dtype) - zero
    else:
        return ((words << (24 - 8 * S)) >> 24).to(dtype)


@triton.jit
def _unpack_4_bits(
    words, zeros_at, GROUP_STRIDE: tl.constexpr, GROUPS: tl.constexpr, ASM: tl.constexpr, dtype: tl.constexpr
):
    """[N, 16] words -> eight slices [N, 16], less their zeros. `zeros_at`: of the stretch's first group, or None."""
    N: tl.constexpr = words.shape[0]
    if zeros_at is not None:
        # Of each quarter of the slices.
        z_0 = _load_rows(zeros_at, dtype, N)
        z_1, z_2, z_3 = z_0, z_0, z_0
        if GROUPS == 2:
            z_2 = _load_rows(zeros_at + GROUP_STRIDE, dtype, N)
            z_3 = z_2
        elif GROUPS == 4:
            z_1 = _load_rows(zeros_at + GROUP_STRIDE, dtype, N)
            z_2 = _load_rows(zeros_at + 2 * GROUP_STRIDE, dtype, N)
            z_3 = _load_rows(zeros_at + 3 * GROUP_STRIDE, dtype, N)
    if ASM is None:
        if zeros_at is None:
            z_0, z_1, z_2, z_3 = 8.0, 8.0, 8.0, 8.0
        return (
            _slice(words, z_0, 0, 4, dtype), _slice(words, z_0, 1, 4, dtype),
            _slice(words, z_1, 2, 4, dtype), _slice(words, z_1, 3, 4, dtype),
            _slice(words, z_2, 4, 4, dtype), _slice(words, z_2, 5, 4, dtype),
            _slice(words, z_3, 6, 4, dtype), _slice(words, z_3, 7, 4, dtype),
        )  # fmt: skip
    elif zeros_at is None:
        return tl.inline_asm_elementwise(
            ASM, "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [words],
            dtype=(tl.int16,) * 8, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        unit: tl.constexpr = 1024.0 if dtype == tl.float16 else 128.0
        return tl.inline_asm_elementwise(
            ASM, "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r,r",
            [words, (-unit - z_0).to(dtype), (-unit - z_1).to(dtype), (-unit - z_2).to(dtype), (-unit - z_3).to(dtype)],
            dtype=(tl.int16,) * 8, is_pure=True, pack=2,
        )  # fmt: skip


@triton.jit
def _unpack_8_bits(words, ASM: tl.constexpr, dtype: tl.constexpr):
    """[N, 32] words -> four slices [N, 32]."""
    if ASM is None:
        return (
            _slice(words, None, 0, 8, dtype), _slice(words, None, 1, 8, dtype),
            _slice(words, None, 2, 8, dtype), _slice(words, None, 3, 8, dtype),
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(ASM, "=r,=r,=r,=r,r,r", [words], dtype=(tl.int16,) * 4, is_pure=True, pack=2)


@triton.jit
def _side_by_side(slices, FIRST: tl.constexpr, COUNT: tl.constexpr, dtype: tl.constexpr):
    """Neighbouring slices, [N, J] each, as [N, COUNT * J]: tensor cores want them in the threads that have them."""
    N: tl.constexpr = slices[0].shape[0]
    J: tl.constexpr = slices[0].shape[1]
    if COUNT == 1:
        wide = slices[FIRST]
    elif COUNT == 2:
        pair = tl.join(slices[FIRST], slices[FIRST + 1])
        wide = tl.reshape(tl.permute(pair, (0, 2, 1)), (N, 2 * J))
    elif COUNT == 4:
        even, odd = tl.join(slices[FIRST], slices[FIRST + 2]), tl.join(slices[FIRST + 1], slices[FIRST + 3])
        wide = tl.reshape(tl.permute(tl.join(even, odd), (0, 2, 3, 1)), (N, 4 * J))
    else:
        even = tl.join(tl.join(slices[0], slices[4]), tl.join(slices[2], slices[6]))
        odd = tl.join(tl.join(slices[1], slices[5]), tl.join(slices[3], slices[7]))
        wide = tl.reshape(tl.permute(tl.join(even, odd), (0, 2, 3, 4, 1)), (N, 8 * J))
    # What PTX returns is the bits.
    return wide.to(dtype, bitcast=True)


@triton.jit
def merge_splits(
    acc, tile, partial_ptr, counters_ptr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, MERGE_SPLITS: tl.constexpr,
):  # fmt: skip
    """Whether this program is the last of its tile to arrive, and then the tile's sum over all splits, in their order.

    The splits are dimension 1 of the grid. MERGE_SPLITS of them are asked for at once, and rows that are padding with
    the others, so that memory is read 16 bytes at a time.
    """
    num_splits = tl.num_programs(1)
    offs = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    partial_at = partial_ptr + tile.to(tl.int64) * num_splits * (BLOCK_N * BLOCK_M) + offs
    tl.store(partial_at + tl.program_id(1) * (BLOCK_N * BLOCK_M), acc)
    # All threads have written before one of them says so; the last to arrive has acquired what the others released.
    tl.debug_barrier()
    is_last = tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel") == num_splits - 1
    if is_last:
        tl.store(counters_ptr + tile, 0)
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=acc.dtype)
        for first in range(0, num_splits, MERGE_SPLITS):
            for i in tl.static_range(MERGE_SPLITS):
                split_at = partial_at + (first + i) * (BLOCK_N * BLOCK_M)
                # Other programs wrote these: not from L1.
                acc += tl.load(split_at, mask=first + i < num_splits, other=0, cache_modifier=".cg")
    return is_last, acc


@triton.jit(do_not_specialize=["num_rows", "split_stretches"])
def _product(
    num_rows, split_stretches, x_ptr, words_ptr, scales_ptr, zeros_ptr, bias_ptr,
    # float32 [tiles, splits, BLOCK_N * BLOCK_M] and int32 [tiles]; None for a single split.
    partial_ptr, counters_ptr, out_ptr, stride_x,
    OUT: tl.constexpr, PADDED: tl.constexpr, IN: tl.constexpr, STRETCH: tl.constexpr, GROUP_SIZE: tl.constexpr,
    BITS: tl.constexpr, ASM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr,
    MERGE_SPLITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    scale_dtype: tl.constexpr = tl.float32 if dtype == tl.float32 else tl.float16
    NUM_N: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    # In memory: words of a row's stretch, and elements of a group of scales.
    WORDS: tl.constexpr = STRETCH * BITS // 32
    SCALES: tl.constexpr = PADDED if dtype == tl.float32 else PADDED // 2
    NUM_STRETCHES: tl.constexpr = (IN + STRETCH - 1) // STRETCH
    ONE_GROUP: tl.constexpr = GROUP_SIZE == IN
    GROUPS: tl.constexpr = 1 if ONE_GROUP or GROUP_SIZE > STRETCH else STRETCH // GROUP_SIZE
    # Inputs of a product: a group's share of a stretch; in float32 fewer, which is what registers hold.
    DOT_K: tl.constexpr = 32 if dtype == tl.float32 else STRETCH // GROUPS
    # Slices of a product.
    COUNT: tl.constexpr = DOT_K // WORDS

    # Down the rows of a group first, then to the next outputs: the weight is read once, the group's rows stay in L2.
    num_m = tl.cdiv(num_rows, BLOCK_M)
    tile = tl.program_id(0)
    group = tile // (GROUP_M * NUM_N)
    group_rows = tl.minimum(num_m - group * GROUP_M, GROUP_M)
    within = tile - group * (GROUP_M * NUM_N)
    pid_m = group * GROUP_M + within % group_rows
    pid_n = within // group_rows
    offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_n = pid_n.to(tl.int64) * BLOCK_N
    offs_n = first_n + tl.arange(0, BLOCK_N)
    mask_m = (offs_m < num_rows)[None, :]

    first = 0
    end = NUM_STRETCHES
    if partial_ptr is not None:
        first = tl.program_id(1).to(tl.int64) * split_stretches
        end = tl.minimum(first + split_stretches, NUM_STRETCHES)
    offs_k = tl.arange(0, DOT_K)
    # [DOT_K, BLOCK_M], transposed by its addresses.
    x_at = x_ptr + offs_m[None, :] * stride_x + offs_k[:, None]
    words_at = words_ptr + offs_n[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    scales_at = _rows_at(scales_ptr, first_n, scale_dtype, BLOCK_N)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for stretch in tl.range(first, end, num_stages=STAGES):
        words = tl.load(words_at + stretch * (PADDED * WORDS))
        first_group = 0 if ONE_GROUP else stretch * STRETCH // GROUP_SIZE
        if BITS == 4:
            zeros_at = None
            if zeros_ptr is not None:
                zeros_at = _rows_at(zeros_ptr, first_n, dtype, BLOCK_N) + first_group * SCALES
            slices = _unpack_4_bits(words, zeros_at, SCALES, GROUPS, ASM, dtype)
        else:
            slices = _unpack_8_bits(words, ASM, dtype)
        for part in tl.static_range(STRETCH // DOT_K):
            weight = _side_by_side(slices, part * COUNT, COUNT, dtype)
            mask = mask_m
            if IN % STRETCH != 0:
                mask = mask_m & (offs_k < IN - stretch * STRETCH - part * DOT_K)[:, None]
            x = tl.load(x_at + (stretch * STRETCH + part * DOT_K), mask=mask, other=0.0)
            if ONE_GROUP:
                acc = tl.dot(weight, x, acc, input_precision="ieee")
            else:
                of_part = scales_at + (first_group + part * DOT_K * GROUPS // STRETCH) * SCALES
                scale = _load_rows(of_part, scale_dtype, BLOCK_N).to(tl.float32)
                acc += tl.dot(weight, x, input_precision="ieee") * scale
    if ONE_GROUP:
        acc *= _load_rows(scales_at, scale_dtype, BLOCK_N).to(tl.float32)

    is_last = True
    if partial_ptr is not None:
        is_last, acc = merge_splits(acc, tile, partial_ptr, counters_ptr, BLOCK_N, BLOCK_M, MERGE_SPLITS)
    if is_last:
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + tl.minimum(offs_n, OUT - 1)).to(tl.float32)[:, None]
        mask = mask_m if OUT % BLOCK_N == 0 else mask_m & (offs_n < OUT)[:, None]
        tl.store(out_ptr + offs_m[None, :] * OUT + offs_n[:, None], acc.to(dtype), mask=mask)


@triton.jit
def _dequantize(
    words_ptr, scales_ptr, zeros_ptr, out_ptr,
    OUT: tl.constexpr, PADDED: tl.constexpr, IN: tl.constexpr, STRETCH: tl.constexpr, GROUP_SIZE: tl.constexpr,
    BITS: tl.constexpr, ASM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One stretch of BLOCK_N outputs."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    scale_dtype: tl.constexpr = tl.float32 if dtype == tl.float32 else tl.float16
    WORDS: tl.constexpr = STRETCH * BITS // 32
    SCALES: tl.constexpr = PADDED if dtype == tl.float32 else PADDED // 2
    ONE_GROUP: tl.constexpr = GROUP_SIZE == IN
    GROUPS: tl.constexpr = 1 if ONE_GROUP or GROUP_SIZE > STRETCH else STRETCH // GROUP_SIZE
    GROUP_K: tl.constexpr = STRETCH // GROUPS
    COUNT: tl.constexpr = 32 // BITS // GROUPS
    stretch = tl.program_id(0).to(tl.int64)
    first_n = tl.program_id(1).to(tl.int64) * BLOCK_N
    offs_n = first_n + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, GROUP_K)
    words = tl.load(words_ptr + (stretch * PADDED + offs_n[:, None]) * WORDS + tl.arange(0, WORDS)[None, :])
    first_group = 0 if ONE_GROUP else stretch * STRETCH // GROUP_SIZE
    scales_at = _rows_at(scales_ptr, first_n, scale_dtype, BLOCK_N) + first_group * SCALES
    if BITS == 4:
        zeros_at = None
        if zeros_ptr is not None:
            zeros_at = _rows_at(zeros_ptr, first_n, dtype, BLOCK_N) + first_group * SCALES
        slices = _unpack_4_bits(words, zeros_at, SCALES, GROUPS, ASM, dtype)
    else:
        slices = _unpack_8_bits(words, ASM, dtype)
    for part in tl.static_range(GROUPS):
        codes = _side_by_side(slices, part * COUNT, COUNT, dtype).to(tl.float32)
        weight = (codes * _load_rows(scales_at + part * SCALES, scale_dtype, BLOCK_N).to(tl.float32)).to(dtype)
        columns = stretch * STRETCH + part * GROUP_K + offs_k
        mask = (offs_n < OUT)[:, None] & (columns < IN)[None, :]
        tl.store(out_ptr + offs_n[:, None] * IN + columns[None, :], weight, mask=mask)
