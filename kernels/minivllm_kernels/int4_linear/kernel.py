"""How a GPU multiplies by a weight of 4-bit codes (W4A16).

Up to 256 rows codes are unpacked on their way to the tensor cores (`product`), so that a weight is read at 4 bits; more
rows unpack it into memory once and leave the product to cuBLAS (`config.dequantizes`).

Floors on an H200 at 4.3 TB/s, groups of 128 without zeros, 4.125 bits a weight: [4096, 4096] 2.0 us, [6144, 4096] 3.0,
[4096, 12288] 6.0, [24576, 4096] 12.1; in bfloat16 7.8, 11.7, 23.4, 46.8, so 3.9 times is the most. By Little's law
4.3 TB/s x 0.8 us = 3.4 MB have to be under way, 26 KB an SM: four programs of 64 outputs with five stages of 4 KB
(and as much of x, which comes from L2) have 80 KB. At 64 rows [24576, 4096] is 12.9 GFLOP, in the 34 us that would be
1.4 times as fast as bfloat16 380 TFLOP/s: programs of 128 outputs then read 100 MB of x from L2, 18 us at 5.5 TB/s.
All of this is arithmetic on the tiles, not yet a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm_kernels.int4_linear.config import CodesConfig, dequantizes
from minivllm_kernels.int4_linear.layout import PackedCodes, pack_codes
from minivllm_kernels.int4_linear.product.kernel import choose, codes_dequantize, codes_linear

if TYPE_CHECKING:
    from minivllm_kernels.ahead_of_time import Specialisation


def pack(
    codes: Tensor, scales: Tensor, zeros: Tensor | None = None, *, dtype: torch.dtype | None = None
) -> PackedCodes:
    """Lay a weight out for `linear`, once.

    Args:
        codes: [out, in] uint8, 0..15.
        scales: [out, groups], any float dtype: groups of 32, 64, a multiple of 128, or all inputs.
        zeros: as scales, uint8, 0..15; None is 8 everywhere.
        dtype: of the activations: float16, bfloat16 or float32; None is that of `scales`, which are kept in float16
            beside 16-bit activations.

    Raises:
        ValueError: groups are of another size.
    """
    assert codes.dtype is torch.uint8 and len(scales) == len(codes) and (zeros is None or zeros.shape == scales.shape)
    return pack_codes(codes, scales, zeros, bits=4, dtype=dtype or scales.dtype)


def linear(
    x: Tensor,
    packed: PackedCodes,
    bias: Tensor | None = None,
    *,
    batch_invariant: bool = False,
    config: CodesConfig | None = None,
) -> Tensor:
    """x W^T + b, W = scale * (code - zero), summed in float32 and rounded once.

    Up to `dequantizes`' rows W is exact; above it is rounded to the dtype of x first.

    Args:
        x: [N, in] of the dtype that was packed for, a row contiguous, at any stride.
        packed: by `pack`. Its launches must follow each other, as those of one stream do.
        bias: [out] or None.
        batch_invariant: one tile and one order of summation for any N, so that a row gives the same bits in any batch.
            It is slower: neither splits nor cuBLAS.
        config: for tuning; the kernel then takes any number of rows.

    Returns:
        [N, out] contiguous.
    """
    assert packed.bits == 4
    return linear_of_codes(x, packed, bias, batch_invariant, config)


def linear_of_codes(
    x: Tensor, packed: PackedCodes, bias: Tensor | None, batch_invariant: bool, config: CodesConfig | None
) -> Tensor:
    """The product with codes of 4 or 8 bits."""
    assert x.shape[1] == packed.num_in and x.dtype is packed.dtype and x.stride(1) == 1, (x.shape, x.dtype)
    if config is None and not batch_invariant and dequantizes(len(x)):
        return F.linear(x, codes_dequantize(packed), bias)
    return codes_linear(x, packed, bias, config or choose(x, packed, batch_invariant))


def dequantize(packed: PackedCodes) -> Tensor:
    """The weight: [out, in] in the dtype that was packed for, each number rounded once."""
    return codes_dequantize(packed)


def specialisations() -> Iterator[Specialisation]:
    """Of Qwen3-8B, of Qwen3-0.6B and of the reference model, at each number of rows that has tiles of its own."""
    half, brain = torch.float16, torch.bfloat16
    for num_rows in (1, 32, 64):
        yield from _spec(num_rows, 4096, 4096, 128, brain)
    yield from _spec(1, 24_576, 4096, 128, brain)
    yield from _spec(512, 6144, 4096, 128, brain, "dequantize")
    yield from _spec(8, 4096, 4096, 128, brain, "invariant", batch_invariant=True)
    # The asymmetric, and the smaller models.
    yield from _spec(64, 4096, 4096, 32, brain, zeros=True)
    yield from _spec(32, 1024, 3072, 64, brain, zeros=True)
    yield from _spec(1, 6144, 1024, 128, half, zeros=True)
    yield from _spec(1, 1408, 256, 32, half, zeros=True)
    yield from _spec(512, 256, 704, 64, half, "dequantize", zeros=True)
    yield from _spec(1, 256, 704, 704, half, "bias", bias=True)
    yield from _spec(64, 512, 256, 32, torch.float32, zeros=True)


def _spec(
    num_rows: int, num_out: int, num_in: int, group_size: int, dtype: torch.dtype, what: str = "", *,
    zeros: bool = False, bias: bool = False, batch_invariant: bool = False,
) -> Iterator[Specialisation]:  # fmt: skip
    from minivllm_kernels.ahead_of_time import launches_of

    codes = torch.empty(num_out, num_in, dtype=torch.uint8, device="meta")
    scales = torch.empty(num_out, num_in // group_size, dtype=dtype, device="meta")
    packed = pack(codes, scales, scales.to(torch.uint8) if zeros else None)
    x = torch.empty(num_rows, num_in, dtype=dtype, device="meta")
    words = [str(dtype).removeprefix("torch."), f"{num_out}x{num_in}", f"g{group_size}", *(["zeros"] if zeros else [])]
    name = "-".join(["int4_linear", *words, *([what] if what else []), f"N{num_rows}"])
    yield from launches_of(
        name, linear, x, packed, scales[:, 0] if bias else None, batch_invariant=batch_invariant,
        wgmma=dtype is not torch.float32 and what != "dequantize",
    )  # fmt: skip
