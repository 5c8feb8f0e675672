"""From a comparison to a word that may be quoted.

An interval lies somewhere about the band of +-x % around no difference (`equal_within`, 1 % unless told), and that is
the verdict, much as in a test of equivalence (TOST):

- wholly inside: `equal within 1 %`, even where it leaves out 1, since a difference that small is one nobody asked for;
- wholly outside, p after Holm's correction under 0.05, and the ratio beyond the noise floor where A/A points tell one:
  `faster`, `slower`, or the metric's own words (`analysis.direction`);
- anything else: `no difference shown`, which does not say that there is none: see `detectable` for how large a
  difference could have hidden, and `repeats_needed` for what would show one of 5 %.

Fewer than three repeats of both are `too few repeats`, unless all repeats agree to the last digit.

That a band has to be cleared costs some repeats where differences are small and next to none where they are large, and
it keeps the share of false verdicts on equal points under the 5 % of the test, which real noise would exceed.
"""

from __future__ import annotations

import math

from analysis.direction import Direction
from analysis.intervals import Paired
from analysis.planning import LEVEL, MIN_PAIRS

NO_DIFFERENCE = "no difference shown"
TOO_FEW = "too few repeats"
NOT_MEASURED = "not measured"
EQUAL_WITHIN = 0.01


def equal(within: float) -> str:
    """`equal within 1 %`."""
    return f"equal within {within * 100:g} %"


def verdict(
    compared: Paired, p_holm: float, direction: Direction, *, equal_within: float, noise_floor: float = math.nan
) -> str:
    """The word for one comparison.

    Args:
        compared: from `analysis.intervals.paired`.
        p_holm: its p, corrected for all comparisons of the sweep.
        direction: of the metric.
        equal_within: half width of the band, as a fraction.
        noise_floor: the ratio less 1 that equal points were seen apart; NaN where no A/A points tell.
    """
    if not compared.num_pairs:
        return NOT_MEASURED
    if compared.num_pairs < MIN_PAIRS and not (compared.num_pairs == 2 and compared.spread == 0):
        return TOO_FEW
    centre, low, high = _logs(compared)
    band = math.log1p(equal_within)
    if -band <= low and high <= band:
        return equal(equal_within)
    if p_holm < LEVEL and (low > band or high < -band):
        floor = 0.0 if math.isnan(noise_floor) else math.log1p(noise_floor)
        if abs(centre) > floor:
            return direction.up if centre > 0 else direction.down
    return NO_DIFFERENCE


def _logs(compared: Paired) -> tuple[float, float, float]:
    """The ratio and its interval as logarithms; where figures may be 0, differences as fractions of the baseline."""
    if not math.isnan(compared.ratio):
        return math.log(compared.ratio), math.log(compared.ratio_low), math.log(compared.ratio_high)
    found = compared.difference, compared.difference_low, compared.difference_high
    if compared.baseline_mean:
        return tuple(part / abs(compared.baseline_mean) for part in found)  # type: ignore[return-value]
    # Of nothing there is no fraction: anything above it is infinitely more.
    return tuple(math.copysign(math.inf, part) if part else 0.0 for part in found)  # type: ignore[return-value]
