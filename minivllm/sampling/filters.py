"""What happens to logits before a token is drawn: penalties, temperature, and the filters that keep likely tokens.

The order is that of transformers' `generate`: penalties, temperature, top-k, top-p, min-p. Each filter sees what the
ones before it left. The sets kept are transformers' too:

- top-k keeps every token that is level with the k-th, so more than k where they tie;
- top-p keeps the shortest run of likeliest tokens whose probability reaches p; of tokens that tie at its end, those
  with the lower ids, so that a tiny p is an argmax (transformers keeps as many, but its unstable sort says which);
- min-p keeps a token that is exactly at the limit.

Everything here is float64: where transformers' float32 cannot tell on which side of a limit a token falls, this can.
Filters work in place on `weights`, unnormalized probabilities whose largest is 1: a dropped token has weight 0.

Shape suffixes: S rows, V vocabulary. Rows that do not use a filter are not among the rows that it gets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Likeliest tokens among which the end of a top-p set is first looked for: a peaked distribution has it there, and
# taking the top 256 of 4,096 costs a sixth of a sort.
_TOP_P_HEAD = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokensSoFar:
    """The tokens that penalties look at: E occurrences over all penalized rows, repeats included.

    Args:
        rows: [E] int64, index into the scores.
        token_ids: [E] int64, below the vocabulary.
        in_output: [E] int32, 1 for a token of the output, 0 for one of the prompt.
        repetition, presence, frequency: [S] float64, neutral (1, 0, 0) for rows without.
    """

    rows: Tensor
    token_ids: Tensor
    in_output: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor


def apply_penalties_(scores_SV: Tensor, so_far: TokensSoFar) -> None:
    """Make tokens that were there before less likely (or likelier).

    Repetition divides a positive score and multiplies a negative one, for tokens of prompt and output; then presence
    is subtracted once, and frequency for each occurrence, for tokens of the output only.

    Args:
        scores_SV: [S, V] float64 logits, changed in place.
        so_far: which tokens there were, and how much they matter.

    Source: CTRL (arXiv 1909.05858, section 4.1) for repetition; OpenAI's API for the others; vLLM for their order.
    """
    scores = scores_SV.view(-1)
    # Flat indices: in two dimensions the same reads and writes cost three times as much on a CPU.
    flat_E = so_far.rows * scores_SV.shape[-1] + so_far.token_ids
    # Counted in a table of all tokens: clearing it is cheaper than sorting out the repeats.
    counts = torch.zeros(scores.shape, dtype=torch.int32, device=scores.device)
    count_E = counts.scatter_add_(0, flat_E, so_far.in_output).index_select(0, flat_E)
    repetition_E, presence_E, frequency_E = (
        penalty.index_select(0, so_far.rows) for penalty in (so_far.repetition, so_far.presence, so_far.frequency)
    )
    score_E = scores.index_select(0, flat_E)
    score_E = torch.where(score_E < 0, score_E * repetition_E, score_E / repetition_E)
    score_E -= presence_E * (count_E > 0) + frequency_E * count_E
    # Repeats of a token write the same value.
    scores.scatter_(0, flat_E, score_E)


def apply_temperature_(scores_SV: Tensor, best_S: Tensor, temperature_S: Tensor) -> None:
    """Scale scores so that the best is 0. Subtracting first changes no probability and leaves no temperature, however
    small, that overflows: the limit is a choice among the best.

    Args:
        scores_SV: [S, V] float64, changed in place.
        best_S: [S], each row's largest score.
        temperature_S: [S] float64, above 0.
    """
    scores_SV.sub_(best_S[:, None]).div_(temperature_S[:, None])


def keep_top_k_(scores_SV: Tensor, top_k_S: Tensor, largest_k: int) -> None:
    """Drop (to -inf) what scores below the k-th best.

    Args:
        scores_SV: [S, V] float64, changed in place.
        top_k_S: [S] int64, 1 or more; the vocabulary or more keeps all.
        largest_k: the largest of them, known to the host.
    """
    vocab_size = scores_SV.shape[-1]
    best_SK = scores_SV.topk(min(largest_k, vocab_size), dim=-1).values
    kth_S1 = best_SK.gather(-1, top_k_S.clamp(max=vocab_size)[:, None] - 1)
    scores_SV.masked_fill_(scores_SV < kth_S1, -torch.inf)


def keep_top_p_(weights_SV: Tensor, top_p_S: Tensor, head: int = _TOP_P_HEAD) -> None:
    """Drop (to 0) what lies beyond the shortest run of likeliest tokens that reaches probability p.

    The end of the run is looked for among the `head` likeliest tokens, and among 4 times more for the rows where it is
    not found, up to a full sort. The result does not depend on where the search starts.

    Args:
        weights_SV: [S, V] float64, changed in place.
        top_p_S: [S] float64 in (0, 1].
        head: how many of the likeliest tokens to look at first.
    """
    vocab_size = weights_SV.shape[-1]
    head = min(head, vocab_size)
    head_SK = weights_SV.topk(head, dim=-1).values
    wanted_S1 = (top_p_S * weights_SV.sum(-1))[:, None]
    cumulative_SK = head_SK.cumsum(-1)
    if head < vocab_size:
        beyond_S = cumulative_SK[:, -1:].lt(wanted_S1).squeeze(-1)
        if beyond_S.any():
            rows = beyond_S.nonzero().squeeze(-1)
            weights = weights_SV[rows]
            keep_top_p_(weights, top_p_S[rows], head * 4)
            weights_SV[rows] = weights
            # These rows are done: a limit of 0 below leaves their kept tokens alone.
            head_SK[rows] = 0

    # A token is kept while the ones before it have not reached p, so the first always is.
    num_kept_S1 = 1 + (cumulative_SK[:, :-1] < wanted_S1).sum(-1, keepdim=True)
    limit_S1 = head_SK.gather(-1, num_kept_S1 - 1)
    num_above_S1 = (head_SK > limit_S1).sum(-1, keepdim=True)
    tied_SV = weights_SV == limit_S1
    num_tied_kept_S1 = num_kept_S1 - num_above_S1
    dropped_SV = weights_SV < limit_S1
    if ((tied_SV.sum(-1, keepdim=True) > num_tied_kept_S1) & (limit_S1 > 0)).any():
        dropped_SV |= tied_SV & (tied_SV.cumsum(-1) > num_tied_kept_S1)
    weights_SV.masked_fill_(dropped_SV, 0)


def keep_min_p_(weights_SV: Tensor, min_p_S: Tensor) -> None:
    """Drop (to 0) what is less likely than a fraction of the likeliest.

    Args:
        weights_SV: [S, V] float64 whose rows have 1 as their largest, changed in place.
        min_p_S: [S] float64 in [0, 1].

    Source: arXiv 2407.01082, section 3.
    """
    weights_SV.masked_fill_(weights_SV < min_p_S[:, None], 0)
