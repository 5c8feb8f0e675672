"""How a GPU draws every row's next token: what a row does not ask for, it does not pay.

A vocabulary is cut into chunks of 2048 tokens, whatever the batch, so one row keeps many programs busy and a row's
result is bitwise its own. Six launches at most, none of which waits for the host:

| launch | grid | what it does |
| --- | --- | --- |
| `forget_tokens`, `remember_tokens` | 16 x M | which tokens occurred, and how often: `penalties` |
| `survey` | chunks x M | best score, first place of it, sum of the weights relative to it |
| `count_bins`, `gather_window` | chunks x M | a window in which top-k and top-p end: `filters` |
| `draw` | M | the thresholds, the chunk, the token |

Greedy rows leave after `survey`'s maximum; rows that only scale by a temperature read their logits once there, and one
chunk of them in `draw`. What no row needs, the caller may leave out of the graph: 2, 4 or 6 launches.

Estimated, not yet measured, at 64 rows of 151,936 float32 logits on an H200 (39 MB a reading: 9 us from memory, some 7
from L2 afterwards, where they fit; exponentials: 12 us wherever they are taken):

- temperature alone reads them once: 12 us, and 4 for `draw`;
- top-k or top-p read them three times, 117 MB: 12 us, 20 (histogram: some 55 instructions a logit), 15, and 6 to 30 for
  `draw`, whose bisection is a chain of some 15 short steps, longer ones the flatter a row is at its threshold;
- one row costs a launch and a wait for memory each: 5 us for a temperature, 10 to 20 with a threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from minivllm_kernels.sample.argmax.kernel import argmax
from minivllm_kernels.sample.arithmetic.kernel import (
    CHUNK_BITS,
    MAX_VOCAB_SIZE,
    rate_of,
    scores_of,
    source_of,
    weights_of,
)
from minivllm_kernels.sample.draw.kernel import draw
from minivllm_kernels.sample.filters.kernel import count_bins, gather_window
from minivllm_kernels.sample.penalties.kernel import forget_tokens, remember_tokens
from minivllm_kernels.sample.state import SampleConfig, SamplingState

if TYPE_CHECKING:
    from minivllm_kernels.ahead_of_time import Specialisation

__all__ = ["SampleConfig", "SamplingState", "argmax", "logprobs", "sample", "specialisations"]

# A chunk of 8 KB of float32, 8 logits a thread: see the table above for how many programs that gives.
DEFAULT_CONFIG = SampleConfig()

_INF = tl.constexpr(float("inf"))


@triton.jit
def survey(
    logits_ptr,
    rows_ptr,
    temperature_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    touched_ptr,
    counts_ptr,
    chunk_best_ptr,
    chunk_worst_ptr,
    chunk_first_ptr,
    chunk_weight_ptr,
    histogram_ptr,
    vocab_size,
    stride_logits,
    num_chunks,
    PENALTIES: tl.constexpr,
    FILTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
):
    """A chunk's best score, its worst above -inf, the first place of the best, and its weights relative to the best."""
    chunk = tl.program_id(0)
    m = tl.program_id(1).to(tl.int64)
    row = tl.load(rows_ptr + m).to(tl.int64)
    if row < 0:
        return
    offs = chunk * BLOCK + tl.arange(0, BLOCK)
    source = source_of(
        m,
        row,
        logits_ptr,
        touched_ptr,
        counts_ptr,
        repetition_ptr,
        presence_ptr,
        frequency_ptr,
        vocab_size,
        stride_logits,
    )
    score = scores_of(offs, offs < vocab_size, source, PENALTIES)
    best = tl.max(score, 0)
    has_nan = tl.max((score != score).to(tl.int32), 0) > 0
    at = m * num_chunks + chunk
    tl.store(chunk_best_ptr + at, tl.where(has_nan, float("nan"), best))
    tl.store(chunk_first_ptr + at, tl.min(tl.where(score == best, offs, vocab_size), 0))
    temperature = tl.load(temperature_ptr + row).to(tl.float64)
    if temperature > 0.0:
        # Without a finite best there is nothing to weigh, and infinities are not to make NaNs.
        reference = tl.where((best > -_INF) & (best < _INF), best, 0.0)
        distance = tl.where(score < _INF, score - reference, 0.0)
        tl.store(chunk_weight_ptr + at, tl.sum(weights_of(distance, rate_of(temperature), CHUNK_BITS), 0))
        if FILTERS:
            tl.store(chunk_worst_ptr + at, tl.min(tl.where(score > -_INF, score, _INF), 0))
            if chunk == 0:
                tl.store(histogram_ptr + m * BINS + tl.arange(0, BINS), tl.zeros((BINS,), tl.int32))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Workspace:
    """What the launches of one `sample` leave each other, by row of the batch; none of it is read before it is written.

    Args:
        chunk_best, chunk_worst: [M, C] float64. NaN is the best of a chunk that holds one.
        chunk_first: [M, C] int32, the first place of the best.
        chunk_weight: [M, C] int64, relative to the chunk's best.
        chunk_total, chunk_above, chunk_kept: [M, C] int64, relative to the row's best.
        chunk_listed: [M, C] int32; list: [M, C * block] int16, places in the chunk.
        histogram: [M, num_bins] int32.
        touched: [M, ceil(V / 32)] int32; counts: [M, V] int32.
    """

    chunk_best: Tensor
    chunk_worst: Tensor
    chunk_first: Tensor
    chunk_weight: Tensor
    chunk_total: Tensor
    chunk_above: Tensor
    chunk_kept: Tensor
    chunk_listed: Tensor
    list: Tensor
    histogram: Tensor
    touched: Tensor
    counts: Tensor

    @classmethod
    def make(
        cls, num_rows: int, vocab_size: int, config: SampleConfig, device: torch.device, penalties: bool, filters: bool
    ) -> _Workspace:
        num_chunks = triton.cdiv(vocab_size, config.block)

        def empty(size: int, dtype: torch.dtype, used: bool = True) -> Tensor:
            return torch.empty((num_rows if used else 0, size), dtype=dtype, device=device)

        return cls(
            chunk_best=empty(num_chunks, torch.float64),
            chunk_worst=empty(num_chunks, torch.float64, filters),
            chunk_first=empty(num_chunks, torch.int32),
            chunk_weight=empty(num_chunks, torch.int64),
            chunk_total=empty(num_chunks, torch.int64, filters),
            chunk_above=empty(num_chunks, torch.int64, filters),
            chunk_kept=empty(num_chunks, torch.int64, filters),
            chunk_listed=empty(num_chunks, torch.int32, filters),
            list=empty(num_chunks * config.block, torch.int16, filters),
            histogram=empty(config.num_bins, torch.int32, filters),
            touched=empty(triton.cdiv(vocab_size, 32), torch.int32, penalties),
            counts=empty(vocab_size, torch.int32, penalties),
        )


def sample(
    logits: Tensor,
    *,
    rows: Tensor,
    positions: Tensor,
    state: SamplingState,
    tokens: Tensor,
    out_tokens: Tensor,
    penalties: bool = True,
    filters: bool = True,
    config: SampleConfig = DEFAULT_CONFIG,
) -> None:
    """Draw each row's next token.

    Args:
        logits: [M, V] float32, float16 or bfloat16, a row contiguous, at any stride, not changed; V below 2^19.
        rows: [M] int32, row of the store; -1 is padding.
        positions: [M] int32, index in the request of the token being drawn.
        state: what the rows want.
        tokens: [max_rows, max_len + 1] int32, the token store; of row m, [0, positions[m]) are known.
        out_tokens: [M] int64, written: 0 for padding, -1 where a row holds a NaN or +inf, or nothing above -inf.
        penalties: False promises that no row has any: two launches and [M, V] int32 of memory less.
        filters: False promises that no row has top-k, top-p or min-p: two launches and 2 M V bytes less.
        config: for tuning.
    """
    num_rows, vocab_size = logits.shape
    assert logits.stride(1) == 1 and 0 < vocab_size <= MAX_VOCAB_SIZE, f"logits {tuple(logits.shape)}"
    assert rows.shape == positions.shape == out_tokens.shape == (num_rows,)
    assert rows.dtype == positions.dtype == tokens.dtype == torch.int32 and out_tokens.dtype == torch.int64
    assert rows.is_contiguous() and positions.is_contiguous() and out_tokens.is_contiguous() and tokens.stride(1) == 1
    if num_rows == 0:
        return
    space = _Workspace.make(num_rows, vocab_size, config, logits.device, penalties, filters)
    num_chunks = space.chunk_best.shape[1]
    padded_chunks = triton.next_power_of_2(num_chunks)
    penalty_args = (state.repetition, state.presence, state.frequency)
    if penalties:
        for kernel in (forget_tokens, remember_tokens):
            kernel[(config.splits, num_rows)](
                rows,
                positions,
                *penalty_args,
                state.num_prompt_tokens,
                tokens,
                space.touched,
                space.counts,
                vocab_size,
                tokens.stride(0),
                BLOCK=min(config.block, 1024),
                num_warps=4,
            )
    by_chunk = (num_chunks, num_rows)
    seen = (*penalty_args, space.touched, space.counts)
    survey[by_chunk](
        logits,
        rows,
        state.temperature,
        *seen,
        space.chunk_best,
        space.chunk_worst,
        space.chunk_first,
        space.chunk_weight,
        space.histogram,
        vocab_size,
        logits.stride(0),
        num_chunks,
        PENALTIES=penalties,
        FILTERS=filters,
        BLOCK=config.block,
        BINS=config.num_bins,
        num_warps=config.num_warps,
    )
    wants = (state.temperature, state.top_k, state.top_p, state.min_p)
    if filters:
        count_bins[by_chunk](
            logits,
            rows,
            *wants,
            *seen,
            space.chunk_best,
            space.chunk_worst,
            space.histogram,
            vocab_size,
            logits.stride(0),
            num_chunks,
            PENALTIES=penalties,
            BLOCK=config.block,
            CHUNKS=padded_chunks,
            BINS=config.num_bins,
            num_warps=config.num_warps,
        )
        gather_window[by_chunk](
            logits,
            rows,
            *wants,
            *seen,
            space.chunk_best,
            space.chunk_worst,
            space.chunk_weight,
            space.histogram,
            space.chunk_total,
            space.chunk_above,
            space.chunk_kept,
            space.chunk_listed,
            space.list,
            vocab_size,
            logits.stride(0),
            num_chunks,
            PENALTIES=penalties,
            BLOCK=config.block,
            CHUNKS=padded_chunks,
            BINS=config.num_bins,
            num_warps=config.num_warps,
        )
    draw[(num_rows,)](
        logits,
        rows,
        positions,
        *wants,
        *seen,
        state.seed,
        space.chunk_best,
        space.chunk_worst,
        space.chunk_first,
        space.chunk_weight,
        space.histogram,
        space.chunk_total,
        space.chunk_above,
        space.chunk_kept,
        space.chunk_listed,
        space.list,
        out_tokens,
        vocab_size,
        logits.stride(0),
        num_chunks,
        PENALTIES=penalties,
        FILTERS=filters,
        BLOCK=config.block,
        CHUNKS=padded_chunks,
        BINS=config.num_bins,
        WIDTH=max(1, min(config.width, config.resident // padded_chunks)),
        num_warps=config.num_warps,
    )


def logprobs(logits: Tensor, token_ids: Tensor, *, num_likeliest: int) -> tuple[Tensor, Tensor]:
    """Raw logprobs, log-softmax of the model's own logits: of each row's chosen token, then of its likeliest.

    PyTorch's own kernels: rows that ask are few, and selecting k of V is what `topk` is good at.

    Args:
        logits: [M, V], any float dtype.
        token_ids: [M] int64, chosen; -1, a failed row, counts as 0.
        num_likeliest: k, at most V of them are given.

    Returns:
        ids [M, 1 + k] int64, values [M, 1 + k] float32.
    """
    wide = logits.float()
    likeliest = wide.topk(min(num_likeliest, wide.shape[1]), dim=-1).indices
    ids = torch.cat([token_ids.clamp(min=0)[:, None], likeliest], dim=-1)
    return ids, wide.gather(-1, ids) - wide.logsumexp(dim=-1, keepdim=True)


def specialisations() -> Iterator[Specialisation]:
    """Qwen3's vocabulary, one of 4096 tokens, and a large one that nothing divides; each promise of a caller."""
    from minivllm_kernels.ahead_of_time import launches_of

    def logits_of(dtype: torch.dtype, vocab_size: int) -> tuple[str, Tensor]:
        name = f"{str(dtype).removeprefix('torch.')}-V{vocab_size}"
        return name, torch.empty(8, vocab_size, dtype=dtype, device="meta")

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for vocab_size in (151_936, 4096, 256_001):
            name, logits = logits_of(dtype, vocab_size)
            yield from launches_of(f"argmax-{name}", argmax, logits, out_tokens=empty(torch.int64, 8))
    for dtype, vocab_size, real, penalties, filters in (
        (torch.float32, 151_936, torch.float64, True, True),
        (torch.float32, 151_936, torch.float32, False, True),
        (torch.float32, 151_936, torch.float64, False, False),
        (torch.bfloat16, 151_936, torch.float64, True, True),
        (torch.float16, 4096, torch.float64, True, True),
        (torch.float32, 256_001, torch.float64, True, True),
    ):
        name, logits = logits_of(dtype, vocab_size)
        words = (("penalties", penalties), ("filters", filters), ("float32-state", real == torch.float32))
        yield from launches_of(
            "-".join(["sample", name, *(word for word, used in words if used)]),
            sample,
            logits,
            rows=empty(torch.int32, 8),
            positions=empty(torch.int32, 8),
            state=SamplingState(
                temperature=empty(real, 256),
                top_k=empty(torch.int32, 256),
                top_p=empty(real, 256),
                min_p=empty(real, 256),
                repetition=empty(real, 256),
                presence=empty(real, 256),
                frequency=empty(real, 256),
                seed=empty(torch.int64, 256),
                num_prompt_tokens=empty(torch.int32, 256),
            ),
            tokens=empty(torch.int32, 256, 8193),
            out_tokens=empty(torch.int64, 8),
            penalties=penalties,
            filters=filters,
        )
