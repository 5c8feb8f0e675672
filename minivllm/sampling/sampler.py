"""Choose the next token of every row of a batch of logits.

Stateless: what comes out for a row depends on its logits, its parameters and (seed, position), never on the rows beside
it. A draw is the inverse of the distribution function: the weights of the kept tokens are summed in token-id order in
float64, and the token is the first whose sum exceeds `uniform * total`. So a row costs one uniform whatever its
vocabulary, and ties need no rule. (Sums over rows of another batch shape may be rounded in another order by the
library: a relative 1e-16, which moves a draw once in about 1e12 tokens.)

A row that needs nothing but an argmax gets one, and no other row's filters cost it anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minivllm.sampling.batch import Draws, RowGroup, RowValues, SamplingBatch, SamplingRow, is_plain
from minivllm.sampling.filters import (
    apply_penalties_,
    apply_temperature_,
    keep_min_p_,
    keep_top_k_,
    keep_top_p_,
)

__all__ = [
    "Logprobs",
    "RowMax",
    "SampleOutput",
    "SamplingBatch",
    "SamplingRow",
    "draw_tokens",
    "invert",
    "is_plain",
    "sample",
    "torch_row_max",
]

# [M, V] to the largest value of each row, NaN where it has one, and the first place that holds it.
RowMax = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Logprobs:
    """Raw logprobs: log-softmax of the model's own logits, before penalties, temperature and filters (vLLM's default,
    `raw_logprobs`). They tell what the model thought, not what the sampler did with it.

    Args:
        rows: the L rows of the batch that asked.
        num_likeliest: how many likeliest tokens each of them asked for, 0 or more.
        token_ids: [L, 1 + K] int64, the chosen token, then the K likeliest; K is the most that any row asked for.
        values: [L, 1 + K] float32, their logprobs.
    """

    rows: tuple[int, ...]
    num_likeliest: tuple[int, ...]
    token_ids: Tensor
    values: Tensor

    def of_rows(self) -> dict[int, dict[int, float]]:
        """{row: {token: logprob}}, the chosen token first, then the likeliest. Waits for the device."""
        table = zip(self.rows, self.num_likeliest, self.token_ids.tolist(), self.values.tolist(), strict=True)
        return {row: dict(zip(ids[: 1 + k], values[: 1 + k], strict=True)) for row, k, ids, values in table}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SampleOutput:
    """One token a row.

    Args:
        token_ids: [M] int64, always below the vocabulary.
        finite: [M] bool; False where a row's logits hold a NaN or +inf, or nothing above -inf: its token means nothing.
        logprobs: None where no row asked.
    """

    token_ids: Tensor
    finite: Tensor
    logprobs: Logprobs | None


def torch_row_max(logits_MV: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own `RowMax`."""
    values, places = logits_MV.max(dim=-1)
    return values, places


def draw_tokens(weights_SV: Tensor, group: RowGroup) -> Tensor:
    """[S] int64: a token of each row, by the uniforms of the group. `weights_SV` as from `draw_weights_`, unchanged."""
    assert group.draws is not None
    return invert(weights_SV, group.draws.uniforms)


def sample(
    logits_MV: Tensor,
    batch: SamplingBatch,
    row_max: RowMax = torch_row_max,
    draw: Callable[[Tensor, RowGroup], Tensor] = draw_tokens,
) -> SampleOutput:
    """Choose a token for every row.

    Args:
        logits_MV: [M, V] float32, not changed. A token at -inf is never chosen.
        batch: what the M rows want.
        row_max: the kernel for rows that want an argmax; see `LayerOps`.
        draw: how tokens come from the weights of a group whose rows are drawn; the weights are its own to use up.
    """
    assert logits_MV.shape[0] == batch.num_rows, f"{logits_MV.shape[0]} rows of logits for {batch.num_rows} requests"
    # The maximum is NaN where any value is, so it tells of a whole row.
    if batch.any_plain:
        best_M, token_ids_M = row_max(logits_MV)
    else:
        best_M = logits_MV.new_zeros(batch.num_rows)
        token_ids_M = torch.zeros_like(best_M, dtype=torch.int64)
    for group in batch.groups:
        scores_SV = penalized_scores(logits_MV, group)
        best_S = scores_SV.amax(dim=-1)
        best_M.index_copy_(0, group.rows, best_S.to(best_M.dtype))
        if group.draws is None:
            ids_S = scores_SV.argmax(dim=-1)
        else:
            ids_S = draw(draw_weights_(scores_SV, best_S, group.draws), group)
        token_ids_M.index_copy_(0, group.rows, ids_S)
    return SampleOutput(
        token_ids=token_ids_M,
        # Only of a finite number is the difference with itself 0; two operations, where `isfinite` is four.
        finite=(best_M - best_M) == 0,
        logprobs=_raw_logprobs(logits_MV, token_ids_M, batch) if batch.logprob_rows else None,
    )


def penalized_scores(logits_MV: Tensor, group: RowGroup) -> Tensor:
    """The group's own copy [S, V] of its logits, in float64, penalties applied."""
    scores_SV = logits_MV.index_select(0, group.rows).double()
    if group.penalties is not None:
        apply_penalties_(scores_SV, group.penalties)
    return scores_SV


def draw_weights_(scores_SV: Tensor, best_S: Tensor, draws: Draws) -> Tensor:
    """The distribution that a group draws from, unnormalized: temperature, then top-k, top-p and min-p.

    Args:
        scores_SV: [S, V] float64, used up.
        best_S: [S] float64, its row maxima.
        draws: parameters of the S rows.

    Returns:
        [S, V] float64, 0 for a dropped token; a row's largest is 1.
    """
    apply_temperature_(scores_SV, best_S, draws.temperature)
    if draws.top_k is not None:
        largest_k = int(draws.top_k.largest)
        _on_rows_(scores_SV, draws.top_k, lambda scores, top_k: keep_top_k_(scores, top_k, largest_k))
    weights_SV = scores_SV.exp_()
    if draws.top_p is not None:
        _on_rows_(weights_SV, draws.top_p, keep_top_p_)
    if draws.min_p is not None:
        _on_rows_(weights_SV, draws.min_p, keep_min_p_)
    return weights_SV


def invert(weights_SV: Tensor, uniforms_S: Tensor) -> Tensor:
    """The first token of each row whose cumulative weight exceeds `uniform * total`."""
    cumulative_SV = weights_SV.cumsum(dim=-1)
    # A uniform below 1 leaves the target below the total, after rounding too, so some sum exceeds it; the clamp is for
    # rows that are not finite.
    target_S1 = uniforms_S[:, None] * cumulative_SV[:, -1:]
    return torch.searchsorted(cumulative_SV, target_S1, right=True).squeeze(-1).clamp_(max=weights_SV.shape[-1] - 1)


def _on_rows_(values_SV: Tensor, parameter: RowValues, filter_: Callable[[Tensor, Tensor], None]) -> None:
    """Run an in-place filter on the rows that use it."""
    if parameter.rows is None:
        filter_(values_SV, parameter.values)
        return
    own_TV = values_SV.index_select(0, parameter.rows)
    filter_(own_TV, parameter.values)
    values_SV.index_copy_(0, parameter.rows, own_TV)


def _raw_logprobs(logits_MV: Tensor, token_ids_M: Tensor, batch: SamplingBatch) -> Logprobs:
    rows = torch.tensor(batch.logprob_rows, device=logits_MV.device)
    logits_LV = logits_MV.index_select(0, rows)
    num_likeliest = min(max(batch.num_logprobs), logits_MV.shape[-1])
    likeliest_LK = logits_LV.topk(num_likeliest, dim=-1).indices
    ids = torch.cat([token_ids_M.index_select(0, rows)[:, None], likeliest_LK], dim=-1)
    return Logprobs(
        rows=batch.logprob_rows,
        num_likeliest=batch.num_logprobs,
        token_ids=ids,
        values=logits_LV.gather(-1, ids) - logits_LV.logsumexp(dim=-1, keepdim=True),
    )
