"""What the sampler's kernels compute a token with: its score, its weight, and the row's random bits.

**Scores** are float64: the logit, penalized. Of unpenalized rows they hold a float32 exactly, so comparing is exact.

**Weights** are integers: 2^bits exp((score - best) / temperature), rounded. Sums of integers do not depend on their
order, so every sum over a vocabulary is bitwise the same whatever the batch, the tiles, the warps or the order of
atomics, and passes agree with each other to the unit. `bits` is 50 in a chunk; over a row it is as many of 44 to 50 as
keep the row's sum in an int64, below 2^19 tokens. Against exact sums, this arithmetic (worked out in numpy, for
normal, peaked and flat rows of 152k tokens at temperatures of 0.01 to 1) draws another token with a probability of
1.2e-8 at most, 3e-9 without filters: the measure of the uniforms for which they disagree. A CPU's float64 sums are off
by as much as 3e-9.

The exponential is float64 (a polynomial, relative error 2e-16: the library's is not to be had in Triton's interpreter),
17 instructions of a unit that does 64 a cycle and SM: 12 us for 64 rows of 152k tokens on an H200, about what reading
them takes.

A draw compares `floor(uniform * total)` with integer sums: the uniform is 53 bits of the hash, so the product's high
half is exact, and always below the total.

Device functions only, inlined where they are called: they have no launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK_BITS = tl.constexpr(50)
ROW_BITS = tl.constexpr(44)
MAX_VOCAB_SIZE = (1 << 19) - 1
# What lies further below the best, in powers of two, weighs nothing after rounding.
REACH = tl.constexpr(52.0)

_LOG2_E = tl.constexpr(1.4426950408889634)
# Added to a double below 2^51, it leaves the nearest whole number in the low bits, in two's complement.
_ROUND = tl.constexpr(6755399441055744.0)
_ROUND_BITS = tl.constexpr(0x4338000000000000)

# SplitMix64's increment and its finalizer (Stafford's variant 13), as in minivllm/sampling/random.py.
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MULTIPLY_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = tl.constexpr(0x94D049BB133111EB)
_TOKEN_STREAM = tl.constexpr(0)


@triton.jit
def _mix(state):
    state = (state ^ (state >> 30)) * _MULTIPLY_1
    state = (state ^ (state >> 27)) * _MULTIPLY_2
    return state ^ (state >> 31)


@triton.jit
def uniform_below(seed, position, total):
    """floor(uniform(seed, position) * total), for an int64 total above 0; the uniform is a multiple of 2^-53."""
    state = _mix(seed.to(tl.uint64) + _GOLDEN)
    state = _mix((state ^ _TOKEN_STREAM) + _GOLDEN)
    bits = _mix((state ^ position.to(tl.uint64)) + _GOLDEN)
    return tl.umulhi(bits & 0xFFFFFFFFFFFFF800, total.to(tl.uint64)).to(tl.int64)


@triton.jit
def _horner(value, x, COEFFICIENT: tl.constexpr):
    # A literal would be rounded to float32 on its way into fma.
    return tl.fma(value, x, tl.full(x.shape, COEFFICIENT, tl.float64))


@triton.jit
def _scaled_exp2(exponent, bits):
    """2^(exponent + bits) in float64; exponents are at most 0, those below -900 count as -900.

    2^f on [-1/2, 1/2] is a minimax polynomial of degree 10. Each step is one rounding and none can be contracted with
    another, so that all kernels round alike.
    """
    exponent = tl.maximum(exponent, -900.0)
    shifted = exponent + _ROUND
    fraction = exponent - (shifted - _ROUND)
    power = tl.full(fraction.shape, 7.037278846726901e-09, tl.float64)
    power = _horner(power, fraction, 1.0208537929657404e-07)
    power = _horner(power, fraction, 1.3215662835959238e-06)
    power = _horner(power, fraction, 1.5252658116409854e-05)
    power = _horner(power, fraction, 1.5403529961127076e-04)
    power = _horner(power, fraction, 1.3333558228561767e-03)
    power = _horner(power, fraction, 9.618129108034596e-03)
    power = _horner(power, fraction, 5.550410866445883e-02)
    power = _horner(power, fraction, 2.4022650695908768e-01)
    power = _horner(power, fraction, 6.931471805599497e-01)
    power = _horner(power, fraction, 1.0)
    whole = shifted.to(tl.int64, bitcast=True) + bits
    # The whole part goes to the exponent field; what else stands above it is shifted out.
    return (power.to(tl.int64, bitcast=True) + (whole << 52)).to(tl.float64, bitcast=True)


@triton.jit
def weights_of(distance, rate, bits):
    """Integer weights, 2^bits at most, of scores `distance` (0 or less) from the best, `rate` powers of two a unit."""
    return (_scaled_exp2(distance * rate, bits) + _ROUND).to(tl.int64, bitcast=True) - _ROUND_BITS


@triton.jit
def factor_of(distance, rate):
    """exp2(distance * rate), float64."""
    return _scaled_exp2(distance * rate, 0)


@triton.jit
def rate_of(temperature):
    """Powers of two that a unit of score is worth.

    Two float32 differ by 1e-45 at least, so a temperature below 1e-200 chooses among the best just as 1e-200 does.
    """
    return (1.0 / tl.maximum(temperature, 1e-200)) * _LOG2_E


@triton.jit
def source_of(
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
):
    """What `scores_of` needs of row m of the batch, which is `row` of the store."""
    return (
        logits_ptr + m * stride_logits,
        touched_ptr + m * tl.cdiv(vocab_size, 32),
        counts_ptr + m * vocab_size,
        tl.load(repetition_ptr + row).to(tl.float64),
        tl.load(presence_ptr + row).to(tl.float64),
        tl.load(frequency_ptr + row).to(tl.float64),
    )


@triton.jit
def _quotient(numerator, denominator):
    """Correctly rounded, from the reciprocal (Markstein's step): three operations where a division takes ten."""
    reciprocal = tl.zeros_like(numerator) + 1.0 / denominator
    quotient = numerator * reciprocal
    rest = tl.fma(quotient, tl.zeros_like(numerator) - denominator, numerator)
    return tl.fma(rest, reciprocal, quotient)


@triton.jit
def scores_of(offs, mask, source, PENALTIES: tl.constexpr):
    """Penalized logits of a row in float64, -inf where masked. Counts are read only where a token was touched."""
    logits_ptr, touched_ptr, counts_ptr, repetition, presence, frequency = source
    score = tl.load(logits_ptr + offs, mask=mask, other=float("-inf")).to(tl.float64)
    if PENALTIES:
        penalized = (repetition != 1.0) | (presence != 0.0) | (frequency != 0.0)
        if penalized:
            words = tl.load(touched_ptr + (offs >> 5), mask=mask, other=0)
            touched = mask & (((words >> (offs & 31)) & 1) != 0)
            count = tl.load(counts_ptr + offs, mask=touched, other=0)
            divided = tl.where((score > 0.0) & (score < float("inf")), score, 0.0)
            kept = tl.where(divided > 0.0, _quotient(divided, repetition), score * repetition)
            lost = tl.fma(count.to(tl.float64), tl.zeros_like(score) + frequency, tl.where(count > 0, presence, 0.0))
            score = tl.where(touched, kept - lost, score)
    return score
