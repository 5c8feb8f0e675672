"""How a GPU finds where top-k and top-p end, without a sort and without approximation.

1. `count_bins` counts each row's scores in bins of equal width, from the best down to where weights round to 0.
2. Counts bound, bin by bin, how many tokens and how much weight lie above. So every program of `gather_window` can say,
   by itself, between which bins a threshold must lie: one bin for top-k, a few for top-p. It sums the weights above the
   window and lists the tokens in it, in token-id order.
3. The program that draws bisects the list, some hundred tokens as a rule, by values: each step moves both ends to
   scores that occur, so it ends, at the exact threshold, when they meet. Ties are counted, not broken by chance.

No bound is a guess: a poor histogram (all logits in one bin) makes the list longer, up to the vocabulary, and the
bisection slower, not wrong.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minivllm_kernels.sample.arithmetic.kernel import (
    REACH,
    ROW_BITS,
    factor_of,
    rate_of,
    scores_of,
    source_of,
    weights_of,
)

# How far off, in bins, float64 may put a score: far less than this.
_SLOP = tl.constexpr(1e-6)
# Of two units of weight: 2^-(CHUNK_BITS - ROW_BITS).
_COARSER = tl.constexpr(2.0**-6)
_INF = tl.constexpr(float("inf"))


@triton.jit
def needs_of(row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr):
    """Temperature, top_k, top_p and min_p; whether a threshold is to be searched; whether there is any filter."""
    temperature = tl.load(temperature_ptr + row).to(tl.float64)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row).to(tl.float64)
    min_p = tl.load(min_p_ptr + row).to(tl.float64)
    searched = (temperature > 0.0) & ((top_k > 0) | (top_p < 1.0))
    filtered = searched | ((temperature > 0.0) & (min_p > 0.0))
    return temperature, top_k, top_p, min_p, searched, filtered


@triton.jit
def range_of(chunk_best_ptr, chunk_worst_ptr, m, num_chunks, CHUNKS: tl.constexpr):
    """The row's best score, its worst above -inf, and whether a token can be chosen at all."""
    chunks = tl.arange(0, CHUNKS)
    best_C = tl.load(chunk_best_ptr + m * num_chunks + chunks, mask=chunks < num_chunks, other=-_INF)
    worst_C = tl.load(chunk_worst_ptr + m * num_chunks + chunks, mask=chunks < num_chunks, other=_INF)
    has_nan = tl.max((best_C != best_C).to(tl.int32), 0) > 0
    best = tl.max(best_C, 0)
    return best, tl.min(worst_C, 0), (best > -_INF) & (best < _INF) & (has_nan == 0)


@triton.jit
def masses_of(chunk_best_ptr, chunk_weight_ptr, best, rate, m, num_chunks, CHUNKS: tl.constexpr):
    """Weights of whole chunks relative to the row's best [CHUNKS], and the bits that all the row's weights may have.

    The chunks were summed relative to their own best. Up to 2^60 leaves room for bounds that are thrice the sum.
    """
    chunks = tl.arange(0, CHUNKS)
    chunk_best = tl.load(chunk_best_ptr + m * num_chunks + chunks, mask=chunks < num_chunks, other=-_INF)
    weight = tl.load(chunk_weight_ptr + m * num_chunks + chunks, mask=chunks < num_chunks, other=0)
    mass = weight.to(tl.float64) * factor_of(chunk_best - best, rate)
    coarse = tl.sum((mass * _COARSER).to(tl.int64), 0)
    extra = tl.zeros((), tl.int64)
    for finer in tl.static_range(1, 7):
        extra += (coarse < (1 << (60 - finer))).to(tl.int64)
    return (mass * (_power_of_two(extra).to(tl.float64) * _COARSER)).to(tl.int64), extra + ROW_BITS


@triton.jit
def _power_of_two(exponent):
    return tl.full((), 1, tl.int64) << exponent


@triton.jit
def reach_of(best, worst, rate):
    """How far below the best the bins go, in units of score."""
    return tl.minimum(best - worst, (1.0 / rate) * REACH)


@triton.jit
def _bins_of(score, best, worst, rate, BINS: tl.constexpr):
    """The bin of each score, and whether it has one: what has none weighs nothing."""
    reach = reach_of(best, worst, rate)
    bins_a_unit = tl.where(reach > 0.0, 1.0 / tl.where(reach > 0.0, reach, 1.0), 0.0) * BINS
    distance = best - score
    bins = tl.minimum((tl.minimum(distance, reach) * bins_a_unit).to(tl.int32), BINS - 1)
    return bins, distance <= reach


@triton.jit
def least_weight_of(min_p, bits):
    """What a token must weigh for min-p, where the best weighs 2^bits."""
    return (min_p * _power_of_two(bits).to(tl.float64) + 0.5).to(tl.int64)


@triton.jit
def wanted_of(top_p, total):
    """The least whole number that is not below top_p * total, and is in [1, total]."""
    product = top_p * total.to(tl.float64)
    floor = product.to(tl.int64)
    wanted = floor + (floor.to(tl.float64) < product).to(tl.int64)
    return tl.minimum(tl.maximum(wanted, 1), total)


@triton.jit
def window_of(histogram_ptr, top_k, top_p, best, worst, rate, bits, total, m, BINS: tl.constexpr):
    """Between which bins the thresholds lie.

    Args:
        bits: of the row's weights.
        total: int64, weight of the row, off by one in 2^24 at most.

    Returns:
        first, last: bins of the window; those before `first` are kept whole, those after `last` dropped; without a
            threshold, first is BINS and last is -1.
        num_before: tokens in the bins before `first`.
        cuts_k: whether top-k drops tokens that weigh something.
    """
    bins = tl.arange(0, BINS)
    count = tl.load(histogram_ptr + m * BINS + bins)
    cumulative = tl.cumsum(count, 0)
    cuts_k = (top_k > 0) & (top_k < tl.sum(count, 0))
    k_bin = tl.where(cuts_k, tl.sum((cumulative < top_k).to(tl.int32), 0), BINS - 1)

    # Weight of a bin's tokens, at most and at least, in units; of top-k's own bin not all tokens may be kept.
    width = reach_of(best, worst, rate) / BINS
    near = tl.maximum(bins.to(tl.float64) - _SLOP, 0.0) * width
    far = (bins.to(tl.float64) + (1.0 + _SLOP)) * width
    most = tl.minimum(weights_of(-near, rate, bits) + 1, _power_of_two(bits))
    least = tl.maximum(weights_of(-far, rate, bits) - 1, 0)
    most = tl.where(bins <= k_bin, count.to(tl.int64) * most, 0)
    least = tl.where((bins < k_bin) | ((bins == k_bin) & (cuts_k == 0)), count.to(tl.int64) * least, 0)
    sum_most = tl.sum(most, 0)
    sum_least = tl.sum(least, 0)
    margin = total >> 24
    at_most = tl.where(cuts_k, sum_most, total + margin)
    at_least = tl.where(cuts_k, sum_least, total - margin)

    # Weight up to and with each bin. It is bounded from both ends: what lies below is missing from the whole.
    most_above = tl.cumsum(most, 0)
    least_above = tl.cumsum(least, 0)
    up_to_most = tl.minimum(most_above, at_most - (sum_least - least_above))
    up_to_least = tl.maximum(least_above, at_least - (sum_most - most_above))
    p_first = tl.sum((up_to_most < wanted_of(top_p, tl.maximum(at_least, 1))).to(tl.int32), 0)
    p_last = tl.sum((up_to_least < wanted_of(top_p, tl.maximum(at_most, 1))).to(tl.int32), 0)

    cuts_p = top_p < 1.0
    first = tl.where(cuts_p, tl.minimum(p_first, k_bin), tl.where(cuts_k, k_bin, BINS))
    last = tl.where(cuts_k, k_bin, tl.where(cuts_p, tl.minimum(p_last, BINS - 1), -1))
    return first, last, tl.sum(tl.where(bins < first, count, 0), 0), cuts_k


@triton.jit
def count_bins(
    logits_ptr,
    rows_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    touched_ptr,
    counts_ptr,
    chunk_best_ptr,
    chunk_worst_ptr,
    histogram_ptr,
    vocab_size,
    stride_logits,
    num_chunks,
    PENALTIES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
):
    """Add a chunk's scores to its row's histogram, which is 0 at first."""
    chunk = tl.program_id(0)
    m = tl.program_id(1).to(tl.int64)
    row = tl.load(rows_ptr + m).to(tl.int64)
    if row < 0:
        return
    temperature, _, _, _, searched, _ = needs_of(row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr)
    if not searched:
        return
    # Asked for before the sums over the row, which hide the wait.
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
    best, worst, usable = range_of(chunk_best_ptr, chunk_worst_ptr, m, num_chunks, CHUNKS)
    if not usable:
        return
    bins, has_bin = _bins_of(score, best, worst, rate_of(temperature), BINS)
    count = tl.histogram(bins, BINS, mask=has_bin)
    tl.atomic_add(histogram_ptr + m * BINS + tl.arange(0, BINS), count, mask=count > 0, sem="relaxed")


@triton.jit
def gather_window(
    logits_ptr,
    rows_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    touched_ptr,
    counts_ptr,
    chunk_best_ptr,
    chunk_worst_ptr,
    chunk_weight_ptr,
    histogram_ptr,
    chunk_total_ptr,
    chunk_above_ptr,
    chunk_kept_ptr,
    chunk_listed_ptr,
    list_ptr,
    vocab_size,
    stride_logits,
    num_chunks,
    PENALTIES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
):
    """Sum a chunk's weights: all, above the window, those of them that min-p keeps. List the tokens in the window."""
    chunk = tl.program_id(0)
    m = tl.program_id(1).to(tl.int64)
    row = tl.load(rows_ptr + m).to(tl.int64)
    if row < 0:
        return
    temperature, top_k, top_p, min_p, _, filtered = needs_of(row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr)
    if not filtered:
        return
    within = tl.arange(0, BLOCK)
    offs = chunk * BLOCK + within
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
    best, worst, usable = range_of(chunk_best_ptr, chunk_worst_ptr, m, num_chunks, CHUNKS)
    if not usable:
        return
    rate = rate_of(temperature)
    masses, bits = masses_of(chunk_best_ptr, chunk_weight_ptr, best, rate, m, num_chunks, CHUNKS)
    first, last, _, _ = window_of(histogram_ptr, top_k, top_p, best, worst, rate, bits, tl.sum(masses, 0), m, BINS)
    bins, has_bin = _bins_of(score, best, worst, rate, BINS)
    at = m * num_chunks + chunk
    listed = (has_bin & (bins >= first) & (bins <= last)).to(tl.int32)
    place = tl.cumsum(listed, 0) - 1
    tl.store(list_ptr + at * BLOCK + place, within.to(tl.int16), mask=listed != 0)
    tl.store(chunk_listed_ptr + at, tl.sum(listed, 0))
    weight = weights_of(score - best, rate, bits)
    tl.store(chunk_total_ptr + at, tl.sum(weight, 0))
    above = tl.where(bins < first, weight, 0)
    tl.store(chunk_above_ptr + at, tl.sum(above, 0))
    tl.store(chunk_kept_ptr + at, tl.sum(tl.where(above >= least_weight_of(min_p, bits), above, 0), 0))
