"""How a GPU multiplies 8-bit integers (W8A8): rows are rounded by one kernel, and multiplied by another.

Few rows have the weight as their floor, at an H200's 4.3 TB/s [4096, 4096] 3.9 us, [24576, 4096] 23.4, half of
bfloat16's. Many are bound by arithmetic: 1979 T/s on paper, twice bfloat16's. 1.3 times the 700 TFLOP/s that cuBLAS
reaches in bfloat16 are 910, and what the tiles read from L2 allows 940 at 5.5 TB/s. Rounding 2048 rows of 4096 moves
25 MB, 6 us, beside 590 us of [24576, 4096] in bfloat16. Arithmetic on the tiles, not yet a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minivllm_kernels.int8_dynamic_linear.config import EightBitConfig, PackedRows, choose_config, pack_rows
from minivllm_kernels.int8_dynamic_linear.product import kernel as both
from minivllm_kernels.paged_attention.decode_config import num_sms_of

if TYPE_CHECKING:
    from minivllm_kernels.ahead_of_time import Specialisation


def pack(codes: Tensor, scales: Tensor) -> PackedRows:
    """Take a weight over for `linear`.

    Args:
        codes: [out, in] int8.
        scales: [out], any float dtype; kept in float32.
    """
    assert codes.dtype is torch.int8
    return pack_rows(codes, scales)


def quantize_rows(x: Tensor, input_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each row by its largest magnitude, or all by one scale: x ~ scale * code.

    Args:
        x: [N, in] float16, bfloat16 or float32, a row contiguous, at any stride.
        input_scale: one float32, on the device: the scale of all rows, measured before; what is beyond 127 of it is
            127 of it. None is each row's own.

    Returns:
        ([N, in] int8 codes in -127..127, halves to even; [N] float32 scales). A row of zeros has scale 0 and codes 0;
        the scale of a row that is not finite is not either.
    """
    return both.quantize_rows(x, input_scale, torch.int8)


def linear(
    x: Tensor,
    packed: PackedRows,
    bias: Tensor | None = None,
    *,
    input_scale: Tensor | None = None,
    config: EightBitConfig | None = None,
) -> Tensor:
    """x W^T + b with x rounded by row: scale_x * scale_w * (sum of integer products, exact) + b.

    A row gives the same bits in any batch, as its sums are exact whatever the tiles and splits.

    Args:
        x: [N, in] float16, bfloat16 or float32, a row contiguous, at any stride.
        packed: by `pack`. Its launches must follow each other, as those of one stream do.
        bias: [out] or None.
        input_scale: as in `quantize_rows`.
        config: for tuning.

    Returns:
        [N, out] contiguous, in the dtype of x.
    """
    config = config or choose_config(len(x), *packed.codes.shape, num_sms=num_sms_of(x.device), wide_sums=False)
    return both.product(*quantize_rows(x, input_scale), packed, bias, x.dtype, config)


def specialisations() -> Iterator[Specialisation]:
    """Of Qwen3-8B, of Qwen3-0.6B and of the reference model, at each number of rows that has tiles of its own."""
    half, brain = torch.float16, torch.bfloat16
    for dtype, num_rows, num_out, num_in in (
        (brain, 1, 4096, 4096),
        (brain, 32, 4096, 12_288),
        (brain, 64, 4096, 4096),
        (half, 128, 6144, 1024),
        (half, 1, 256, 704),
    ):
        yield from both.specialise("int8_dynamic_linear", pack, linear, dtype, num_rows, num_out, num_in)
    # Half of the registers are the 128 x 256 sums. Ampere's mma takes its operands from registers too.
    many = ("int8_dynamic_linear", pack, linear, brain, 2048, 24_576, 4096)
    yield from both.specialise(*many, what="ampere-", max_spill_bytes=48, architectures=(80,))
    yield from both.specialise(*many, architectures=(90,))
    for dtype, num_in in ((brain, 4096), (half, 704), (brain, 12_288)):
        yield from both.specialise_quantize("int8_dynamic_linear", quantize_rows, dtype, num_in)
    yield from both.specialise_quantize("int8_dynamic_linear", quantize_rows, brain, 1024, with_scale=True)
