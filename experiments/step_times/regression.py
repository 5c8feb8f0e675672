"""Steps' times as a sum of what they compute, each part with a price that is not negative.

    step_s = a                              a step, whatever is in it
           + f(tokens)                      products with weights: increasing, linear between powers of two
           + b decodes + c prefills         what a request costs
           + d decode contexts + e prefill contexts + g (query, key) pairs of prefills           attention
           + h swapped blocks

Errors count as fractions of a step's time, so that short steps matter as much as long ones. Two defences against what a
busy machine does to some steps: those further off than a few times the usual error count less (Huber, 1964), and for
the total they are drawn in to that distance; then all prices are scaled so that the total is kept, since what a run
takes is a sum and not a median.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.step_times.records import WORK, RecordedRun

# Steps between two powers of two, for a price of their own.
_FEWEST_STEPS = 12
_ROUNDS = 8
# Of the usual error (scaled to a standard deviation), the largest that counts in full.
_HUBER = 2.5
_MAD_TO_SIGMA = 1.4826
_PREFILL, _DECODE = WORK.index("num_prefill_tokens"), WORK.index("num_decode_tokens")
# Priced each by itself; prefill tokens only as tokens.
LINEAR = tuple(name for name in WORK if name != "num_prefill_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """What was fitted.

    Args:
        step_s: the constant.
        knots: numbers of tokens, increasing; token_s[i] is the price of a token between knots[i] and knots[i + 1].
        each_s: of `LINEAR`, in that order.
    """

    step_s: float
    knots: tuple[float, ...]
    token_s: tuple[float, ...]
    each_s: tuple[float, ...]

    def predict(self, work: np.ndarray) -> np.ndarray:
        """[num_steps, len(WORK)] -> [num_steps] seconds."""
        columns = np.asarray([self.step_s, *self.token_s, *self.each_s])
        predicted: np.ndarray = _design(work, self.knots) @ columns
        return predicted


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Of predictions for steps that were not fitted on.

    Args:
        step_fraction: mean absolute error of a step over the mean step.
        total_fraction: mean absolute error of the sum over a run, or over a tenth of the only run, as a fraction of it.
    """

    step_fraction: float
    total_fraction: float


def fit(work: np.ndarray, step_s: np.ndarray) -> Prices:
    """Fit prices.

    Args:
        work: [num_steps, len(WORK)].
        step_s: [num_steps], above 0.
    """
    from scipy.optimize import nnls

    knots = choose_knots(work[:, _PREFILL] + work[:, _DECODE])
    design = _design(work, knots)
    # Columns of one size, for the solver's tolerances.
    scale = np.maximum(np.abs(design).max(axis=0), 1e-300)
    weights = np.ones(len(step_s))
    for _ in range(_ROUNDS):
        by = weights / step_s
        prices = nnls(design / scale * by[:, None], step_s * by)[0] / scale
        predicted = np.maximum(design @ prices, 1e-12)
        off = step_s / predicted - 1
        limit = max(_HUBER * _MAD_TO_SIGMA * float(np.median(np.abs(off - np.median(off)))), 1e-6)
        weights = np.sqrt(np.minimum(1.0, limit / np.maximum(np.abs(off - np.median(off)), 1e-12)))
    middle = float(np.median(off))
    drawn_in = predicted * (1 + np.clip(off, middle - 2 * limit, middle + 2 * limit))
    prices *= drawn_in.sum() / predicted.sum()
    first, last = 1, len(knots)
    return Prices(
        step_s=float(prices[0]),
        knots=knots,
        token_s=tuple(map(float, prices[first:last])),
        each_s=tuple(map(float, prices[last:])),
    )


def choose_knots(num_tokens: np.ndarray) -> tuple[float, ...]:
    """0, powers of two with enough steps between them, and the largest number of tokens."""
    knots = [0.0]
    power = 1.0
    largest = float(num_tokens.max())
    while power < largest:
        if np.count_nonzero((num_tokens > knots[-1]) & (num_tokens <= power)) >= _FEWEST_STEPS:
            knots.append(power)
        power *= 2
    if len(knots) > 1 and np.count_nonzero(num_tokens > knots[-1]) < _FEWEST_STEPS:
        knots.pop()
    return (*knots, largest)


def cross_validate(runs: Sequence[RecordedRun], num_folds: int = 10) -> Errors:
    """Errors on what each fit was not shown: each run in turn, or each tenth of the only run."""
    work = np.concatenate([run.work for run in runs])
    step_s = np.concatenate([run.step_s for run in runs])
    absolute_s, totals = 0.0, []
    for held_out in _folds([len(run.step_s) for run in runs], num_folds):
        prices = fit(work[~held_out], step_s[~held_out])
        predicted, real = prices.predict(work[held_out]), step_s[held_out]
        absolute_s += float(np.abs(predicted - real).sum())
        totals.append(abs(float(predicted.sum() / real.sum()) - 1))
    return Errors(step_fraction=absolute_s / float(step_s.sum()), total_fraction=float(np.mean(totals)))


def _folds(lengths: Sequence[int], num_folds: int) -> Iterator[np.ndarray]:
    """Masks of what is held out."""
    total = sum(lengths)
    if len(lengths) > 1:
        bounds = np.cumsum([0, *lengths])
    else:
        bounds = np.linspace(0, total, num_folds + 1).astype(int)
    places = np.arange(total)
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        if last > first:
            yield (places >= first) & (places < last)


def _design(work: np.ndarray, knots: Sequence[float]) -> np.ndarray:
    """[num_steps, 1 + pieces + len(LINEAR)]: what each price is multiplied by. The last piece has no end."""
    num_tokens = work[:, _PREFILL] + work[:, _DECODE]
    pieces = [
        np.clip(num_tokens - low, 0.0, None if last else high - low)
        for low, high, last in zip(knots[:-1], knots[1:], [*[False] * (len(knots) - 2), True], strict=True)
    ]
    each = [work[:, WORK.index(name)] for name in LINEAR]
    return np.stack([np.ones(len(work)), *pieces, *each], axis=1)
