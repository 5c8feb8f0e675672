"""How a GPU multiplies 8-bit floats (e4m3): as `int8_dynamic_linear`, on GPUs of sm_89 and later.

Floors are those of 8-bit integers. Sums are kept in float32 (see `int8_dynamic_linear.product`), which leaves no
registers for tiles of 256 rows: at 128 x 128 what is read from L2 at 5.5 TB/s allows 700 TFLOP/s, as much as cuBLAS
reaches in bfloat16, so that many rows gain memory rather than time. Arithmetic on the tiles, not yet a measurement.
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
        codes: [out, in] float8_e4m3fn.
        scales: [out], any float dtype; kept in float32.
    """
    assert codes.dtype is torch.float8_e4m3fn
    return pack_rows(codes, scales)


def quantize_rows(x: Tensor, input_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each row by its largest magnitude, or all by one scale: x ~ scale * code.

    Args:
        x: [N, in] float16, bfloat16 or float32, a row contiguous, at any stride.
        input_scale: one float32, on the device: the scale of all rows, measured before; what is beyond 448 of it is
            448 of it. None is each row's own.

    Returns:
        ([N, in] float8_e4m3fn codes; [N] float32 scales). A row of zeros has scale 0 and codes 0; the scale of a row
        that is not finite is not either.
    """
    return both.quantize_rows(x, input_scale, torch.float8_e4m3fn)


def linear(
    x: Tensor,
    packed: PackedRows,
    bias: Tensor | None = None,
    *,
    input_scale: Tensor | None = None,
    batch_invariant: bool = False,
    config: EightBitConfig | None = None,
) -> Tensor:
    """x W^T + b with x rounded by row: scale_x * scale_w * (sum of products of 8-bit floats) + b.

    Args:
        x: [N, in] float16, bfloat16 or float32, a row contiguous, at any stride.
        packed: by `pack`. Its launches must follow each other, as those of one stream do.
        bias: [out] or None.
        input_scale: as in `quantize_rows`.
        batch_invariant: one tile and one order of summation for any N, so that a row gives the same bits in any batch.
        config: for tuning.

    Returns:
        [N, out] contiguous, in the dtype of x.
    """
    config = config or choose_config(
        len(x), *packed.codes.shape, num_sms=num_sms_of(x.device), wide_sums=True, batch_invariant=batch_invariant
    )
    return both.product(*quantize_rows(x, input_scale), packed, bias, x.dtype, config)


def specialisations() -> Iterator[Specialisation]:
    """Of Qwen3-8B, of Qwen3-0.6B and of the reference model, at each number of rows that has tiles of its own."""
    half, brain, hopper = torch.float16, torch.bfloat16, (90,)
    for dtype, num_rows, num_out, num_in in (
        (brain, 1, 4096, 4096),
        (brain, 32, 24_576, 4096),
        (brain, 64, 4096, 4096),
        (half, 128, 6144, 1024),
        (brain, 2048, 24_576, 4096),
        (half, 1, 256, 704),
    ):
        yield from both.specialise("fp8_linear", pack, linear, dtype, num_rows, num_out, num_in, architectures=hopper)
    yield from both.specialise(
        "fp8_linear", pack, linear, brain, 8, 4096, 4096, what="invariant-", architectures=hopper, batch_invariant=True
    )
    yield from both.specialise_quantize("fp8_linear", quantize_rows, brain, 12_288, architectures=hopper)
