"""How often a point is repeated: a fixed number of times, or until its interval is narrow enough.

The interval is Student's t on the logarithm of a run-level metric, at 95 %. A decision looks at nothing but the rows of
the point's earlier repeats, so a sweep that was killed and is taken up again decides as it would have. Looking often
and stopping when it looks good makes such intervals cover less than they say: 92 % instead of 95 % with at least 3
repeats, 94 to 95 % with at least 5 (4,000 simulated points each, normal noise, at most 20). That is why there is a
least number, and why the rows carry the rule (`design.*`).
"""

from __future__ import annotations

import difflib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from experiments import tables
from experiments.errors import CommandError

LEVEL = 0.95
# Of two runs, chance alone makes a narrow interval every few times.
FEWEST = 3
_KEYS = ("metric", "relative_half_width", "max_repeats")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """The rule of one point.

    Args:
        least: repeats that run in any case.
        most: repeats that run at most.
        metric: the column of `runs` that is to be known; None where the number is fixed.
        relative_half_width: half the interval over the estimate, at which it is narrow enough.
    """

    least: int
    most: int
    metric: str | None = None
    relative_half_width: float | None = None

    def wants_more(self, values: Sequence[float | None]) -> bool:
        """Whether one more repeat is needed.

        Args:
            values: the metric in the repeats so far that ended well, null where a run did not have it.
        """
        if len(values) < self.least:
            # Some failed: those are not made up for, or a point that always fails would be tried for ever.
            return False
        width = relative_half_width(values)
        assert self.relative_half_width is not None
        return width is not None and width > self.relative_half_width

    @property
    def columns(self) -> dict[str, Any]:
        """As `runs` keeps it."""
        return {
            "design.min_repeats": self.least,
            "design.max_repeats": self.most,
            "design.repeat_metric": self.metric,
            "design.relative_half_width": self.relative_half_width,
        }


def relative_half_width(values: Sequence[float | None]) -> float | None:
    """Half the 95 % interval of the geometric mean, as a fraction of it; None of less than two values, or where one is
    null or not above 0."""
    known = [value for value in values if value is not None and value > 0]
    if len(known) < max(2, len(values)):
        return None
    # A second of imports that a sweep with a fixed number of repeats does not wait for.
    from scipy.special import stdtrit

    logs = [math.log(value) for value in known]
    quantile = float(stdtrit(len(logs) - 1, (1 + LEVEL) / 2))
    return math.expm1(quantile * statistics.stdev(logs) / math.sqrt(len(logs)))


def repeats_rule(repeats: Any, until: Any) -> Repeats:
    """The rule of `repeats` and `repeat_until`.

    Raises:
        CommandError: values that make no rule.
    """
    if not _whole(repeats) or repeats < 1:
        raise CommandError(f"repeats={repeats!r}: must be 1 or more")
    if not isinstance(until, Mapping) or set(until) != set(_KEYS):
        raise CommandError(f"repeat_until={until!r}: must have the keys {', '.join(_KEYS)}")
    metric, width, most = (until[key] for key in _KEYS)
    if width is None:
        return Repeats(least=repeats, most=repeats)
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width < 1:
        raise CommandError(f"repeat_until.relative_half_width={width!r}: must be null or between 0 and 1")
    if repeats < FEWEST:
        raise CommandError(
            f"repeats={repeats}: must be {FEWEST} or more where repeat_until.relative_half_width={width} is given"
        )
    if not _whole(most) or most < repeats:
        raise CommandError(f"repeat_until.max_repeats={most!r}: must be a whole number, repeats={repeats} or more")
    numbers = [f.name for f in tables.RUNS if pa.types.is_floating(f.type) and "." not in f.name]
    if metric not in numbers:
        near = difflib.get_close_matches(str(metric), numbers, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ", such as output_throughput_tps"
        raise CommandError(f"repeat_until.metric={metric!r}: must be a measured column of runs{hint}")
    return Repeats(least=repeats, most=most, metric=metric, relative_half_width=float(width))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
