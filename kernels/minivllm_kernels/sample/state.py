"""What each request wants, on the device, and how the kernels cut up their work."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SamplingState:
    """Sampling parameters by row of the request store: [max_rows] contiguous tensors, written with the request.

    Floats may be float32 or float64. The kernels compute in float64, so float64 gives what a CPU computes from the
    user's numbers, while float32 changes them first: a temperature of 0.7 by a relative 2e-8.

    Args:
        temperature: 0 is greedy.
        top_k: int32, 0 or less keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.
        repetition, presence, frequency: penalties, neutral at 1, 0 and 0.
        seed: int64, folded already.
        num_prompt_tokens: int32, what of the row's tokens is prompt.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    seed: Tensor
    num_prompt_tokens: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """How a row is cut. Nothing of this changes a token, save the rounding of 2^-44 of a weight: see `arithmetic`.

    Args:
        block: tokens of a chunk, one program each; a power of two, at most 32768. The same for every batch size.
        num_bins: of the coarse histogram; a power of two. Its cost grows with them, the lists shrink.
        resident, width: list entries that the last kernel keeps in registers, in all and of one chunk; further ones
            are read again in each step.
        num_warps: of all kernels that see a chunk.
        splits: programs that share the tokens of a penalized row.
    """

    block: int = 2048
    num_bins: int = 128
    resident: int = 2048
    width: int = 256
    num_warps: int = 8
    splits: int = 16
