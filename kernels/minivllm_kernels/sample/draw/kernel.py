"""How a GPU draws one row's token from what the chunks' programs left.

Thresholds first, where there are any, by bisection over the listed tokens; then the chunk whose sum of kept weights
exceeds `floor(uniform * total)`, and in it the first token whose running sum does. One program a row. Its list lies in
registers, WIDTH entries a chunk; what is longer is read again in each step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minivllm_kernels.sample.arithmetic.kernel import (
    CHUNK_BITS,
    rate_of,
    scores_of,
    source_of,
    uniform_below,
    weights_of,
)
from minivllm_kernels.sample.filters.kernel import (
    least_weight_of,
    masses_of,
    needs_of,
    wanted_of,
    window_of,
)

_INF = tl.constexpr(float("inf"))


@triton.jit
def _listed_scores(
    begin,
    list_ptr,
    listed_C,
    source,
    PENALTIES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Scores [CHUNKS, WIDTH] of the entries [begin, begin + WIDTH) of each chunk's list, -inf beyond its end."""
    entry = begin + tl.arange(0, WIDTH)[None, :]
    start = tl.arange(0, CHUNKS)[:, None] * BLOCK
    mask = entry < listed_C[:, None]
    within = tl.load(list_ptr + start + entry, mask=mask, other=0)
    return scores_of(start + within.to(tl.int32), mask, source, PENALTIES)


@triton.jit
def _kept_of(
    top_k,
    top_p,
    least,
    num_before,
    cuts_k,
    best,
    rate,
    bits,
    at_C,
    mask_C,
    chunk_total_ptr,
    chunk_above_ptr,
    chunk_kept_ptr,
    listed_C,
    list_ptr,
    source,
    PENALTIES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What the filters keep of a row.

    A threshold is the listed score at which the amount of all scores from above reaches what is wanted: a number of
    tokens for top-k, then a weight for top-p. It is bisected between two listed scores with

        amount(above upper) < wanted <= amount(from lower on),

    and each step moves one of them to the next listed score on its side of the middle, until they meet.

    Returns:
        mass_C: [CHUNKS] int64, each chunk's kept weight.
        limit: tokens that score more are kept, where min-p allows.
        level_C: [CHUNKS] int32, how many of a chunk's tokens at the limit are kept: its first.
    """
    longest = tl.max(listed_C, 0)
    score0 = _listed_scores(0, list_ptr, listed_C, source, PENALTIES, BLOCK, CHUNKS, WIDTH)
    weight0 = weights_of(score0 - best, rate, bits)
    lower = tl.min(tl.where(score0 > -_INF, score0, _INF))
    highest = tl.max(score0)
    for begin in range(WIDTH, longest, WIDTH):
        score = _listed_scores(begin, list_ptr, listed_C, source, PENALTIES, BLOCK, CHUNKS, WIDTH)
        lower = tl.minimum(lower, tl.min(tl.where(score > -_INF, score, _INF)))
        highest = tl.maximum(highest, tl.max(score))

    before = tl.sum(tl.load(chunk_above_ptr + at_C, mask=mask_C, other=0), 0)
    kept_before_C = tl.load(chunk_kept_ptr + at_C, mask=mask_C, other=0)
    # The weight that top-p has a share of: all there is, until top-k drops some.
    total = tl.sum(tl.load(chunk_total_ptr + at_C, mask=mask_C, other=0), 0)
    limit = tl.full((), -_INF, tl.float64)
    over = before
    wanted = before
    kept_C = tl.zeros((CHUNKS,), tl.int64)
    level_C = tl.zeros((CHUNKS,), tl.int32)
    for turn in range(2):
        by_weight = turn == 1
        if (by_weight & (top_p < 1.0)) | ((turn == 0) & cuts_k):
            wanted = tl.where(by_weight, wanted_of(top_p, total), top_k.to(tl.int64))
            base = tl.where(by_weight, before, num_before.to(tl.int64))
            amount0 = tl.where(by_weight, weight0, (score0 > -_INF).to(tl.int64))
            upper = highest
            while lower < upper:
                middle = lower + (upper - lower) * 0.5
                # Between neighbours the middle may be rounded up.
                middle = tl.where(middle < upper, middle, lower)
                amount = tl.sum(tl.where(score0 > middle, amount0, 0))
                next_lower = tl.min(tl.where(score0 > middle, score0, _INF))
                next_upper = tl.max(tl.where(score0 > middle, -_INF, score0))
                for begin in range(WIDTH, longest, WIDTH):
                    score = _listed_scores(begin, list_ptr, listed_C, source, PENALTIES, BLOCK, CHUNKS, WIDTH)
                    weight = weights_of(score - best, rate, bits)
                    amount += tl.sum(tl.where(score > middle, tl.where(by_weight, weight, 1), 0))
                    next_lower = tl.minimum(next_lower, tl.min(tl.where(score > middle, score, _INF)))
                    next_upper = tl.maximum(next_upper, tl.max(tl.where(score > middle, -_INF, score)))
                enough = base + amount >= wanted
                lower = tl.where(enough, next_lower, lower)
                upper = tl.where(enough, upper, next_upper)
            limit = lower

            # Of each chunk's list: weight above the limit, that of tokens that min-p keeps, how many are level with it.
            above_C = tl.sum(tl.where(score0 > limit, weight0, 0), 1)
            kept_C = tl.sum(tl.where((score0 > limit) & (weight0 >= least), weight0, 0), 1)
            level_C = tl.sum((score0 == limit).to(tl.int32), 1)
            for begin in range(WIDTH, longest, WIDTH):
                score = _listed_scores(begin, list_ptr, listed_C, source, PENALTIES, BLOCK, CHUNKS, WIDTH)
                weight = weights_of(score - best, rate, bits)
                above_C += tl.sum(tl.where(score > limit, weight, 0), 1)
                kept_C += tl.sum(tl.where((score > limit) & (weight >= least), weight, 0), 1)
                level_C += tl.sum((score == limit).to(tl.int32), 1)
            over = before + tl.sum(above_C, 0)
            total = over + tl.sum(level_C, 0) * weights_of(limit - best, rate, bits)

    weight = weights_of(limit - best, rate, bits)
    if top_p < 1.0:
        # Of the tokens that are level with the last one, only the first are needed to get there.
        num_level = (wanted - over + weight - 1) // tl.maximum(weight, 1)
        preceding_C = (tl.cumsum(level_C, 0) - level_C).to(tl.int64)
        level_C = tl.minimum(tl.maximum(num_level - preceding_C, 0), level_C.to(tl.int64)).to(tl.int32)
    mass_C = kept_before_C + kept_C + tl.where(weight >= least, level_C.to(tl.int64) * weight, 0)
    return mass_C, limit, level_C


@triton.jit
def draw(
    logits_ptr,
    rows_ptr,
    positions_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    touched_ptr,
    counts_ptr,
    seed_ptr,
    chunk_best_ptr,
    chunk_worst_ptr,
    chunk_first_ptr,
    chunk_weight_ptr,
    histogram_ptr,
    chunk_total_ptr,
    chunk_above_ptr,
    chunk_kept_ptr,
    chunk_listed_ptr,
    list_ptr,
    out_ptr,
    vocab_size,
    stride_logits,
    num_chunks,
    PENALTIES: tl.constexpr,
    FILTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A row's token: 0 for padding, -1 where the row has no finite best."""
    m = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + m).to(tl.int64)
    if row < 0:
        tl.store(out_ptr + m, 0)
        return
    chunk_C = tl.arange(0, CHUNKS)
    mask_C = chunk_C < num_chunks
    at_C = m * num_chunks + chunk_C
    best_C = tl.load(chunk_best_ptr + at_C, mask=mask_C, other=-_INF)
    has_nan = tl.max((best_C != best_C).to(tl.int32), 0) > 0
    best = tl.max(best_C, 0)
    if has_nan | (best == _INF) | (best == -_INF):
        tl.store(out_ptr + m, -1)
        return
    temperature, top_k, top_p, min_p, _, filtered = needs_of(row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr)
    if temperature <= 0.0:
        first_C = tl.load(chunk_first_ptr + at_C, mask=mask_C, other=0)
        tl.store(out_ptr + m, tl.min(tl.where(best_C == best, first_C, vocab_size), 0).to(tl.int64))
        return

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
    rate = rate_of(temperature)
    mass_C, bits = masses_of(chunk_best_ptr, chunk_weight_ptr, best, rate, m, num_chunks, CHUNKS)
    limit = tl.full((), -_INF, tl.float64)
    level_C = tl.zeros((CHUNKS,), tl.int32)
    least = tl.zeros((), tl.int64)
    if FILTERS:
        worst = tl.min(tl.load(chunk_worst_ptr + at_C, mask=mask_C, other=_INF), 0)
        if filtered:
            first_bin, last_bin, num_before, cuts_k = window_of(
                histogram_ptr, top_k, top_p, best, worst, rate, bits, tl.sum(mass_C, 0), m, BINS
            )
            least = least_weight_of(min_p, bits)
            mass_C, limit, level_C = _kept_of(
                top_k,
                top_p,
                least,
                num_before,
                cuts_k,
                best,
                rate,
                bits,
                at_C,
                mask_C,
                chunk_total_ptr,
                chunk_above_ptr,
                chunk_kept_ptr,
                tl.load(chunk_listed_ptr + at_C, mask=mask_C, other=0),
                list_ptr + m * num_chunks * BLOCK,
                source,
                PENALTIES,
                BLOCK,
                CHUNKS,
                WIDTH,
            )

    target = uniform_below(tl.load(seed_ptr + row), tl.load(positions_ptr + m), tl.sum(mass_C, 0))
    up_to_C = tl.cumsum(mass_C, 0)
    chosen = tl.sum((up_to_C <= target).to(tl.int32), 0)
    mass = tl.sum(tl.where(chunk_C == chosen, mass_C, 0), 0)
    target -= tl.sum(tl.where(chunk_C < chosen, mass_C, 0), 0)
    level = tl.sum(tl.where(chunk_C == chosen, level_C, 0), 0)

    offs = chosen * BLOCK + tl.arange(0, BLOCK)
    score = scores_of(offs, offs < vocab_size, source, PENALTIES)
    reference = best
    if not (FILTERS and filtered):
        # Weights of a whole chunk were summed relative to its own best: finer units there than in `mass_C`.
        reference = tl.sum(tl.where(chunk_C == chosen, best_C, 0.0), 0)
        bits = tl.full((), CHUNK_BITS, tl.int64)
        weight_C = tl.load(chunk_weight_ptr + at_C, mask=mask_C, other=0)
        whole = tl.sum(tl.where(chunk_C == chosen, weight_C, 0), 0)
        target = (target.to(tl.float64) * (whole.to(tl.float64) / mass.to(tl.float64))).to(tl.int64)
    weight = weights_of(score - reference, rate, bits)
    at_limit = score == limit
    kept = (score > limit) | (at_limit & (tl.cumsum(at_limit.to(tl.int32), 0) <= level))
    weight = tl.where(kept & (weight >= least), weight, 0)
    # The running sum ends above the target; a division that was rounded up must not pass it.
    target = tl.minimum(target, tl.sum(weight, 0) - 1)
    place = tl.sum((tl.cumsum(weight, 0) <= target).to(tl.int32), 0)
    tl.store(out_ptr + m, (chosen * BLOCK + place).to(tl.int64))
