"""How a product of 8-bit activations and weights is cut up.

No timing decides anything here, so that a run can be repeated. All of it is arithmetic, not yet a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from minivllm_kernels.int4_linear.config import choose_splits
from minivllm_kernels.int4_linear.layout import NUM_COUNTERS

# A row of shared memory as wgmma reads it: 128 bytes.
BLOCK_K = 128
# Of all stages of a program: of four that share an SM, of two, or of one alone (what an A100 has).
_SHARED_BYTES = {16: 48 * 1024, 32: 48 * 1024, 64: 96 * 1024, 128: 128 * 1024, 256: 160 * 1024}


@dataclass(frozen=True, kw_only=True, slots=True)
class EightBitConfig:
    """A launch: tiles of `block_m` rows and `block_n` outputs, the inputs cut into `num_splits` parts."""

    block_m: int
    block_n: int
    num_splits: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedRows:
    """A weight [out, in] of 8-bit numbers, as it is.

    Args:
        codes: [out, in] int8 or float8_e4m3fn, contiguous.
        scales: [out] float32.
        counters: int32 zeros, left at zero by each launch. So no two launches with one weight may run at a time.
    """

    codes: Tensor
    scales: Tensor
    counters: Tensor = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.codes.nbytes + self.scales.nbytes + self.counters.nbytes


def pack_rows(codes: Tensor, scales: Tensor) -> PackedRows:
    """Take a weight over; no copy where it is contiguous and its scales are float32."""
    assert scales.shape == (len(codes),)
    counters = torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=codes.device)
    return PackedRows(codes=codes.contiguous(), scales=scales.float().contiguous(), counters=counters)


@lru_cache(maxsize=4096)
def choose_config(
    num_rows: int, num_out: int, num_in: int, *, num_sms: int, wide_sums: bool, batch_invariant: bool = False
) -> EightBitConfig:
    """Tiles for [num_rows, num_in] times [num_out, num_in].

    Few rows are a matter of memory: small tiles, split until all SMs read. Many are a matter of L2: a tile of 128
    outputs and 256 rows does 170 operations for each byte it reads, at 5.5 TB/s 940 T/s, one of 128 x 128 does 128.

    Args:
        wide_sums: whether sums are kept twice, so that registers have no room for 128 x 256.
        batch_invariant: one tile and no splits, whatever the number of rows.
        num_sms: of the GPU.
    """
    if batch_invariant:
        block_m, block_n, num_warps = 64, 64, 4
    elif num_rows <= 32:
        block_m, block_n, num_warps = (16 if num_rows <= 16 else 32), 64, 4
    elif num_rows <= 64:
        block_m, block_n, num_warps = 64, 128, 4
    else:
        # The larger tile once there is one for each SM.
        large = not wide_sums and -(-num_rows // 256) * -(-num_out // 128) >= 0.9 * num_sms
        block_m, block_n, num_warps = (256 if large else 128), 128, 8
    num_splits = 1
    if not batch_invariant:
        num_splits = choose_splits(
            num_tiles=-(-num_rows // block_m) * -(-num_out // block_n),
            num_steps=-(-num_in // BLOCK_K),
            programs={16: 3, 32: 3, 64: 2}.get(block_m, 1),
            overhead=1 if block_m <= 32 else 2,
            num_sms=num_sms,
        )
    stage_bytes = (block_m + block_n) * BLOCK_K
    return EightBitConfig(
        block_m=block_m,
        block_n=block_n,
        num_splits=num_splits,
        num_warps=num_warps,
        num_stages=max(2, min(6, _SHARED_BYTES[block_m] // stage_bytes)),
    )
