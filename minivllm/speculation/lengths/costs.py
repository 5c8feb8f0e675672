"""What steps cost, learned from steps: no law of the machine is assumed but that more tokens do not take less time."""

from __future__ import annotations

from bisect import bisect_left, insort

from minivllm.speculation.lengths.base import StepOutcome

# Newest sample's share of a point's value is 1 in this many, once the point has seen them.
_MEMORY = 12
# More than this share from what was expected is no noise. A step can be slow for reasons of its own (a compilation, a
# neighbour) and then counts as no slower than that; it is never fast, so one as fast is believed at once.
_NOISE = 0.4


class Curve:
    """Seconds as a function of a count: straight lines between points, each of which follows the samples near it.

    Points are counts of three significant bits (1, 2, .. 8, 10, 12, 14, 16, 20, ..): an eighth to a quarter apart.

    Args:
        prior: what is believed until there are samples.
    """

    def __init__(self, prior: Curve | None = None) -> None:
        self._counts: list[int] = []
        self._seconds: dict[int, float] = {}
        if prior is not None:
            self._counts.extend(prior._counts)
            self._seconds.update(prior._seconds)
        self._num_samples = dict.fromkeys(self._counts, 0)
        self._doubts = False

    @property
    def largest(self) -> int:
        """Largest count known; 0 where none is."""
        return self._counts[-1] if self._counts else 0

    def at(self, count: float, start: int = 0, start_s: float = 0.0) -> float:
        """Seconds, no less than `start_s`.

        Args:
            count: `start` or more.
            start, start_s: a point known from elsewhere; the curve's own points up to there are passed over.
        """
        counts = self._counts
        if count <= start or not counts or counts[-1] <= start:
            # Nothing is known. The best is hoped for: a step will tell.
            return start_s
        right = bisect_left(counts, count)
        left = right - 1
        if right == len(counts):
            # Beyond the last point: as steep as over the upper half, which noise tilts less than the last stretch.
            right -= 1
            left = bisect_left(counts, (counts[-1] + start) / 2)
        x_0, y_0, x_1, y_1 = start, start_s, counts[right], self._seconds[counts[right]]
        if 0 <= left < right and counts[left] > start:
            x_0, y_0 = counts[left], self._seconds[counts[left]]
        slope = (y_1 - y_0) / (x_1 - x_0)
        if count > x_1:
            # Where one point is known, half of its cost may be that of drafting at all.
            slope = max(0.0, slope if x_0 > start else slope / 2)
        return max(start_s, y_1 + slope * (count - x_1))

    def slope(self, count: int) -> float:
        """Seconds for one more, seen over the upper half: near `count` alone, noise is larger than the difference."""
        half = count // 2
        return max(0.0, self.at(count) - self.at(half)) / (count - half)

    def observe(self, count: int, seconds: float, *, expected_s: float, step_s: float) -> None:
        """A sample.

        Args:
            expected_s: what was known of `count`.
            step_s: of a whole step, beside which a small rise is no outlier.
        """
        grain = 1 << max(0, count.bit_length() - 3)
        point = (count + grain // 2) // grain * grain
        num_samples = self._num_samples.get(point)
        error_s, noise_s = seconds - expected_s, _NOISE * max(expected_s, step_s / 20)
        if not num_samples:
            # A first sample has nothing to be weighed against: a slow one is believed only after another slow one.
            self._doubts = error_s > noise_s and not self._doubts
            if self._doubts:
                return
            if num_samples is None:
                insort(self._counts, point)
            self._seconds[point], self._num_samples[point] = seconds, 1
        elif error_s < -noise_s:
            self._seconds[point] = seconds
        else:
            self._num_samples[point] = num_samples + 1
            error_s = min(error_s, noise_s) / min(num_samples + 1, _MEMORY)
            self._seconds[point] = max(0.0, self._seconds[point] + error_s)


class Prices:
    """Costs of a coming step.

    Args:
        costs: what is known.
        num_requests: that decode.
        num_prefill_tokens: other tokens beside them.
    """

    def __init__(self, costs: StepCosts, num_requests: int, num_prefill_tokens: int) -> None:
        self._verify, self._draft = costs.verify_curve(num_requests), costs.draft_curve(num_requests)
        self._num_tokens = num_requests + num_prefill_tokens
        self._token_s: float | None = None
        if _is_prefill(num_requests, num_prefill_tokens):
            # Prompts must be computed whatever is drafted: decoding costs what it costs without them, and a draft what
            # one more of their tokens would.
            self._token_s = costs.plain.slope(self._num_tokens)
            self._num_tokens = num_requests
        self.plain_s = costs.plain.at(self._num_tokens)
        # Twice the tokens that a step is known to have verified: no step is a leap into the dark.
        self.most_drafts = 2 * max(self._num_tokens, self._verify.largest) - self._num_tokens

    def verify_s(self, num_drafts: float) -> float:
        """Of the step without its drafting."""
        if self._token_s is not None:
            return self.plain_s + self._token_s * num_drafts
        return self._verify.at(self._num_tokens + num_drafts, self._num_tokens, self.plain_s)

    def draft_s(self, length: int) -> float:
        """Of drafting, at most so many tokens for a request."""
        return self._draft.at(length)


class StepCosts:
    """Durations of steps: plain ones, ones that verify drafts, and the drafting.

    Plain steps are one curve over their tokens. The others depend on the number of requests besides, so they are curves
    of their own for 1, 2, 3-4, 5-8, .. requests; what is not known yet is taken over from the nearest.
    """

    def __init__(self) -> None:
        self.plain = Curve()
        self._verify: dict[int, Curve] = {}
        self._draft: dict[int, Curve] = {}

    def verify_curve(self, num_requests: int) -> Curve:
        """Over all tokens of a step that verifies."""
        return _nearest(self._verify, num_requests)

    def draft_curve(self, num_requests: int) -> Curve:
        """Over the most drafts of a request."""
        return _nearest(self._draft, num_requests)

    def observe(self, step: StepOutcome) -> None:
        """A step is over."""
        num_requests, num_drafts, num_asked, length = len(step.outcomes), 0, 0, 0
        for outcome in step.outcomes:
            if outcome.num_allowed_tokens:
                num_asked += 1
                num_drafts += outcome.num_draft_tokens
                length = max(length, outcome.num_allowed_tokens)
        num_tokens = num_requests + step.num_prefill_tokens
        if num_tokens == 0:
            return
        seconds, plain_s = step.duration_s - step.draft_s, self.plain.at(num_tokens)
        if num_drafts == 0:
            self.plain.observe(num_tokens, seconds, expected_s=plain_s, step_s=plain_s)
        elif not _is_prefill(num_requests, step.num_prefill_tokens):
            curve, count = _own(self._verify, num_requests), num_tokens + num_drafts
            expected_s = curve.at(count, num_tokens, plain_s)
            curve.observe(count, seconds, expected_s=expected_s, step_s=expected_s)
        if num_asked:
            curve = _own(self._draft, num_asked)
            curve.observe(length, step.draft_s, expected_s=curve.at(length), step_s=plain_s)


def size_class(num_requests: int) -> int:
    """0, 1, 2, .. for 1, 2, 3-4, 5-8, .. requests: batches that share what is learned."""
    return (num_requests - 1).bit_length()


def _is_prefill(num_requests: int, num_prefill_tokens: int) -> bool:
    """Whether a step is rather one of prompts than of decoding; others may be last tokens, which draft nothing."""
    return num_prefill_tokens > num_requests


def _nearest(curves: dict[int, Curve], num_requests: int) -> Curve:
    own = size_class(num_requests)
    if own in curves:
        return curves[own]
    return curves[min(curves, key=lambda other: (abs(other - own), other))] if curves else Curve()


def _own(curves: dict[int, Curve], num_requests: int) -> Curve:
    own = size_class(num_requests)
    if own not in curves:
        curves[own] = Curve(prior=_nearest(curves, num_requests))
    return curves[own]
