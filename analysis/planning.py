"""How small a difference a sweep can find, and how many repeats finding one takes.

Power is that of the very rule that verdicts follow (`analysis.verdicts`): a difference counts as found when the
interval lies beyond the margin and p, corrected for all comparisons, is under the level. The spread is estimated from
few repeats and is as often too small as too large; planning with it would find a difference less often than promised.
So its upper confidence bound is used, and a plan made from three repeats asks for more than one from ten.
"""

from __future__ import annotations

import functools
import math

from scipy import special, stats

# Two numbers have a spread in name only.
MIN_PAIRS = 3
LEVEL = 0.05
POWER = 0.9
# That the true spread is under the bound which is planned with.
ASSURANCE = 0.8
MAX_REPEATS = 10_000


def spread_bound(spread: float, num_pairs: int, assurance: float = ASSURANCE) -> float:
    """Upper bound of the true standard deviation, given that of `num_pairs` numbers.

    Source: Browne 1995, "On the use of a pilot sample for sample size determination".
    """
    if num_pairs < 2 or math.isnan(spread):
        return math.nan
    freedom = num_pairs - 1
    return float(spread * math.sqrt(freedom / stats.chi2.ppf(1 - assurance, freedom)))


def power(
    effect: float, spread: float, num_pairs: int, *, num_comparisons: int = 1, margin: float = 0.0, level: float = LEVEL
) -> float:
    """Chance that a true difference is found.

    Args:
        effect: the true ratio less 1, above `margin`.
        spread: standard deviation of the pairs' log ratios, above 0, taken as known.
        num_pairs: repeats.
        num_comparisons: that Holm corrects for; the worst case is Bonferroni's, and that is what is taken.
        margin: the ratio less 1 that the interval must lie beyond.
        level: two-sided.
    """
    if num_pairs < MIN_PAIRS:
        return 0.0
    # Both must happen, and are thresholds of one statistic: the chance is the smaller one's.
    return min(
        _power((math.log1p(effect) - math.log1p(margin)) / spread, num_pairs, level / 2),
        _power(math.log1p(effect) / spread, num_pairs, level / (2 * num_comparisons)),
    )


def repeats_needed(
    spread: float,
    num_pairs: int,
    effect: float,
    *,
    num_comparisons: int = 1,
    margin: float = 0.0,
    wanted: float = POWER,
) -> float:
    """The number of repeats at which a difference of `effect` is found with the wanted chance.

    Args:
        spread: standard deviation of the log ratios of `num_pairs` pairs.
        effect, num_comparisons, margin: as for `power`.

    Returns:
        A whole number, infinite above 10,000, NaN where the spread is not known.
    """
    bound = spread_bound(spread, num_pairs)
    if math.isnan(bound):
        return math.nan

    def found(repeats: int) -> bool:
        return _detectable(bound, repeats, num_comparisons, margin, wanted) <= math.log1p(effect)

    low, high = MIN_PAIRS - 1, MIN_PAIRS
    while not found(high):
        if high >= MAX_REPEATS:
            return math.inf
        low, high = high, min(2 * high, MAX_REPEATS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return float(high)


def detectable_effect(
    spread: float, num_pairs: int, *, num_comparisons: int = 1, margin: float = 0.0, wanted: float = POWER
) -> float:
    """The smallest difference (ratio less 1) that this number of repeats finds with the wanted chance; infinite where
    even a factor of a thousand would be missed, NaN where the spread is not known."""
    bound = spread_bound(spread, num_pairs)
    if math.isnan(bound) or num_pairs < MIN_PAIRS:
        return math.nan
    log_ratio = _detectable(bound, num_pairs, num_comparisons, margin, wanted)
    return math.expm1(log_ratio) if log_ratio < math.log(1000) else math.inf


def _detectable(spread: float, num_pairs: int, num_comparisons: int, margin: float, wanted: float) -> float:
    """As a log ratio, the spread taken as known."""
    clear = math.log1p(margin) + spread * _detectable_size(num_pairs, LEVEL / 2, wanted)
    return max(clear, spread * _detectable_size(num_pairs, LEVEL / (2 * num_comparisons), wanted))


@functools.cache
def _detectable_size(num_pairs: int, level: float, wanted: float) -> float:
    """The smallest mean, in standard deviations, that a one-sided t test finds with the wanted chance."""
    low, high = 0.0, 1.0
    while _power(high, num_pairs, level) < wanted:
        low, high = high, 2 * high
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, num_pairs, level) >= wanted else (middle, high)
    return high


def _power(size: float, num_pairs: int, level: float) -> float:
    # As statsmodels' TTestPower has it, whose every call looks the critical value up again: reports make thousands.
    critical = _critical(num_pairs, level)
    # Beyond this the noncentral t is 1 to three digits or more, and further on it overflows.
    if size * math.sqrt(num_pairs) > 10 + 3 * critical:
        return 1.0
    return 1 - float(special.nctdtr(num_pairs - 1, size * math.sqrt(num_pairs), critical))


@functools.cache
def _critical(num_pairs: int, level: float) -> float:
    return float(stats.t.isf(level, num_pairs - 1))
