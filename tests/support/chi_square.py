"""Draws against exact probabilities: what a sampler must draw from, in plain Python, and how likely its draws are.

With fixed seeds a test on these either always passes or always fails. Where one test makes several comparisons, each
gets its share of the error level: `level(num_comparisons)`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from minivllm.sampling_params import SamplingParams

# How likely a sound sampler may be to fail, over all comparisons of a test.
_FAMILY_LEVEL = 1e-3


def level(num_comparisons: int) -> float:
    """What each p-value has to exceed (Bonferroni)."""
    return _FAMILY_LEVEL / num_comparisons


def token_probabilities(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int] = (), output: Sequence[int] = ()
) -> list[float]:
    """The distribution of the next token. Where the limit of top-p falls among ties, lower ids stay; greedy is all on
    the first of the likeliest."""
    scores = [float(logit) for logit in logits]
    for token in {*map(int, prompt), *map(int, output)}:
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    counts = Counter(map(int, output))
    for token, count in counts.items():
        scores[token] -= params.presence_penalty + params.frequency_penalty * count
    best = max(scores)
    if params.greedy:
        return [float(token == scores.index(best)) for token in range(len(scores))]
    weights = [math.exp((score - best) / params.temperature) for score in scores]
    if params.top_k > 0:
        kth = sorted(weights, reverse=True)[min(params.top_k, len(weights)) - 1]
        weights = [w if w >= kth else 0.0 for w in weights]
    total, reached = sum(weights), 0.0
    for token in sorted(range(len(weights)), key=lambda t: (-weights[t], t)):
        if reached >= params.top_p * total and params.top_p < 1:
            weights[token] = 0.0
        reached += weights[token]
    weights = [w if w >= params.min_p * max(weights) else 0.0 for w in weights]
    return [w / sum(weights) for w in weights]


def joint_probabilities(
    num_tokens: int, probabilities: Callable[[tuple[int, ...]], Sequence[float]]
) -> dict[tuple[int, ...], float]:
    """Of every sequence of so many tokens that can occur at all.

    Args:
        num_tokens: 0 or more.
        probabilities: of the next token, after the tokens before it.
    """
    joint: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(num_tokens):
        joint = {
            (*before, token): probability * following
            for before, probability in joint.items()
            for token, following in enumerate(probabilities(before))
            if following > 0
        }
    return joint


def p_value(counts: Sequence[int] | np.ndarray, probabilities: Sequence[float] | np.ndarray) -> float:
    """Of Pearson's chi-square; 0 where something was drawn that cannot be. The rarest cells are taken together, until
    every cell expects five draws or more."""
    observed, expected = np.asarray(counts, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    assert abs(expected.sum() - 1) < 1e-9, f"probabilities sum to {expected.sum()}"
    expected = expected * observed.sum()
    if observed[expected == 0].any():
        return 0.0
    order = np.argsort(expected)
    order = order[expected[order] > 0]
    observed, expected = observed[order], expected[order]
    enough = (np.cumsum(expected) >= 5) & (np.append(expected[1:], np.inf) >= 5)
    last = int(np.argmax(enough)) + 1
    cells = [0, *range(last, len(expected))]
    if len(cells) == 1:
        return 1.0
    return float(stats.chisquare(np.add.reduceat(observed, cells), np.add.reduceat(expected, cells)).pvalue)


def joint_p_value(sequences: Iterable[Sequence[int]], joint: Mapping[tuple[int, ...], float]) -> float:
    """Of sequences that were drawn, one a request, against `joint_probabilities`."""
    drawn = Counter(tuple(map(int, sequence)) for sequence in sequences)
    if not drawn.keys() <= joint.keys():
        return 0.0
    return p_value([drawn[sequence] for sequence in joint], list(joint.values()))
