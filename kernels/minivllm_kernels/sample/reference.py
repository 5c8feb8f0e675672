"""What sampling a token means, a row and a token at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minivllm_kernels.sample.state import SamplingState

_MASK = (1 << 64) - 1
_TOKEN_STREAM = 0


def argmax_reference(logits: Tensor) -> Tensor:
    """The first of each row's largest logits.

    Args:
        logits: [M, V], any float dtype.

    Returns:
        [M] int64, -1 where a row holds a NaN or +inf, or nothing above -inf.
    """
    return torch.tensor([_first_best(row) for row in logits.tolist()], dtype=torch.int64)


def sample_reference(
    logits: Tensor, *, rows: Tensor, positions: Tensor, state: SamplingState, tokens: Tensor
) -> Tensor:
    """Draw each row's next token: penalties, temperature, top-k, top-p, min-p, then one uniform.

    Args:
        logits: [M, V], any float dtype.
        rows: [M], row of the store, -1 for padding.
        positions: [M], index in the request of the token being drawn.
        state: what the rows of the store want.
        tokens: [max_rows, max_len + 1], prompt, then output; of row m, [0, positions[m]) are known.

    Returns:
        [M] int64: 0 for padding, -1 where no token can be chosen.
    """
    drawn = []
    for scores, row, position in zip(logits.double().tolist(), rows.tolist(), positions.tolist(), strict=True):
        if row < 0:
            drawn.append(0)
            continue
        prompt = tokens[row, : min(position, int(state.num_prompt_tokens[row]))].tolist()
        output = tokens[row, len(prompt) : position].tolist()
        scores = _penalized(scores, prompt, output, state, row)
        best = _first_best(scores)
        if best == -1 or state.temperature[row] == 0:
            drawn.append(best)
            continue
        weights = kept_weights(
            scores,
            temperature=float(state.temperature[row]),
            top_k=int(state.top_k[row]),
            top_p=float(state.top_p[row]),
            min_p=float(state.min_p[row]),
        )
        target = uniform_reference(int(state.seed[row]), position) * math.fsum(weights)
        sums = (math.fsum(weights[: token + 1]) for token in range(len(weights)))
        drawn.append(next(token for token, total in enumerate(sums) if total > target))
    return torch.tensor(drawn, dtype=torch.int64)


def kept_weights(scores: list[float], *, temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """What each token weighs in the draw, relative to the best; 0 if a filter drops it.

    Top-k keeps all that are level with the k-th; top-p the shortest run of likeliest tokens that reaches p, of equals
    the first; min-p what is exactly at its limit.
    """
    best = max(scores)
    if 0 < top_k < len(scores):
        kth = sorted(scores, reverse=True)[top_k - 1]
        scores = [score if score >= kth else -math.inf for score in scores]
    weights = [math.exp((score - best) / temperature) for score in scores]
    if top_p < 1:
        wanted = top_p * math.fsum(weights)
        likeliest = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
        reached = 0.0
        for token in likeliest:
            weight = weights[token]
            if reached >= wanted:
                weights[token] = 0.0
            reached += weight
    return [weight if weight >= min_p else 0.0 for weight in weights]


def uniform_reference(seed: int, position: int) -> float:
    """A multiple of 2^-53 in [0, 1): a hash of (seed, stream, position).

    Source: SplitMix64's finalizer (Steele et al., OOPSLA'14, figure 16, Stafford's variant 13), as the engine's own
    `minivllm.sampling.random` uses it.
    """

    def mix(state: int) -> int:
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        return state ^ state >> 31

    bits = 0
    for absorbed in (seed & _MASK, _TOKEN_STREAM, position):
        bits = mix((bits ^ absorbed) + 0x9E3779B97F4A7C15 & _MASK)
    return (bits >> 11) * 2.0**-53


def _first_best(scores: list[float]) -> int:
    if any(score != score or score == math.inf for score in scores) or max(scores) == -math.inf:
        return -1
    return scores.index(max(scores))


def _penalized(
    scores: list[float], prompt: list[int], output: list[int], state: SamplingState, row: int
) -> list[float]:
    repetition, presence, frequency = (
        float(values[row]) for values in (state.repetition, state.presence, state.frequency)
    )
    scores = list(scores)
    for token in set(prompt) | set(output):
        score = scores[token]
        count = output.count(token)
        score = score * repetition if score < 0 else score / repetition
        scores[token] = score - (presence * (count > 0) + frequency * count)
    return scores
