"""How a GPU multiplies by a weight of 8-bit codes (W8A16), by the kernel and the rules of `int4_linear`.

A tile of 64 outputs and 128 inputs is 8 KB, twice that of 4-bit codes; unpacking is the same. The floor on an H200 at
4.3 TB/s is half of bfloat16's: [4096, 4096] 3.9 us, [6144, 4096] 5.9, [4096, 12288] 11.7, [24576, 4096] 23.4.
Arithmetic, not yet a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minivllm_kernels.int4_linear.config import CodesConfig
from minivllm_kernels.int4_linear.kernel import linear_of_codes
from minivllm_kernels.int4_linear.layout import PackedCodes, pack_codes
from minivllm_kernels.int4_linear.product.kernel import codes_dequantize

if TYPE_CHECKING:
    from minivllm_kernels.ahead_of_time import Specialisation


def pack(codes: Tensor, scales: Tensor, *, dtype: torch.dtype | None = None) -> PackedCodes:
    """Lay a weight out for `linear`, once.

    Args:
        codes: [out, in] int8.
        scales: [out, groups], any float dtype: one group, or groups of 32, 64 or a multiple of 128.
        dtype: of the activations: float16, bfloat16 or float32; None is that of `scales`, which are kept in float16
            beside 16-bit activations.

    Raises:
        ValueError: groups are of another size.
    """
    assert codes.dtype is torch.int8 and len(scales) == len(codes)
    return pack_codes(codes, scales, None, bits=8, dtype=dtype or scales.dtype)


def linear(
    x: Tensor,
    packed: PackedCodes,
    bias: Tensor | None = None,
    *,
    batch_invariant: bool = False,
    config: CodesConfig | None = None,
) -> Tensor:
    """x W^T + b, W = scale * code, summed in float32 and rounded once. All else is as in `int4_linear`."""
    assert packed.bits == 8
    return linear_of_codes(x, packed, bias, batch_invariant, config)


def dequantize(packed: PackedCodes) -> Tensor:
    """The weight: [out, in] in the dtype that was packed for, each number rounded once."""
    return codes_dequantize(packed)


def specialisations() -> Iterator[Specialisation]:
    """Of Qwen3-8B, of Qwen3-0.6B and of the reference model, at each number of rows that has tiles of its own."""
    from minivllm_kernels.ahead_of_time import launches_of

    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    for num_rows, num_out, num_in, group_size, dtype, what in (
        (1, 24_576, 4096, 4096, brain, ""),
        (32, 4096, 4096, 128, brain, ""),
        (64, 4096, 12_288, 128, brain, ""),
        (8, 6144, 4096, 128, brain, "invariant-"),
        (512, 4096, 4096, 128, brain, "dequantize-"),
        (1, 4096, 1024, 32, half, ""),
        (64, 256, 704, 64, half, ""),
        (1, 512, 256, 256, full, ""),
    ):
        codes = torch.empty(num_out, num_in, dtype=torch.int8, device="meta")
        packed = pack(codes, torch.empty(num_out, num_in // group_size, dtype=dtype, device="meta"))
        x = torch.empty(num_rows, num_in, dtype=dtype, device="meta")
        word = str(dtype).removeprefix("torch.")
        yield from launches_of(
            f"int8_linear-{word}-{num_out}x{num_in}-g{group_size}-{what}N{num_rows}", linear, x, packed,
            batch_invariant=what == "invariant-", wgmma=dtype is not full and what != "dequantize-",
        )  # fmt: skip
