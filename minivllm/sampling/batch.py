"""The rows of one sampling step as tensors: made on the host, once, without a look at the logits.

Rows are sorted by what they need. Greedy rows without penalties need nothing and appear nowhere. The others go into
groups of bounded size, so that their float64 copies stay small at any batch and vocabulary; in a group, each filter
names the rows that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minivllm.sampling.filters import TokensSoFar
from minivllm.sampling.random import uniforms
from minivllm.sampling_params import SamplingParams

# 64 rows of a 150,000 token vocabulary are 77 MB in float64; of 4,096 tokens they are 2 MB and fit a CPU's cache.
MAX_GROUP_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SamplingRow:
    """One token to draw.

    Args:
        params: how; `n`, stops and lengths are not looked at.
        seed: any int; with `position` it decides the draw.
        position: index in the request (prompt included) of the token being drawn.
        prompt_token_ids, output_token_ids: 1-D int arrays (views will do), read only where `params.penalized`;
            every id is below the vocabulary.
    """

    params: SamplingParams
    seed: int
    position: int
    prompt_token_ids: np.ndarray | None = None
    output_token_ids: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowValues:
    """One parameter of the rows that use it.

    Args:
        rows: [T] int64 indices into the group, None where all rows use it.
        values: [T].
        largest: the largest value, known to the host.
    """

    rows: Tensor | None
    values: Tensor
    largest: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draws:
    """How a group of S rows draws. A filter is None where no row uses it.

    Args:
        uniforms: [S] float64 in [0, 1).
        temperature: [S] float64 above 0.
        top_k, top_p, min_p: int64, float64, float64.
    """

    uniforms: Tensor
    temperature: Tensor
    top_k: RowValues | None
    top_p: RowValues | None
    min_p: RowValues | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowGroup:
    """S rows that need more than an argmax of their logits.

    Args:
        rows: [S] int64, indices into the batch.
        members: the same, ascending, on the host.
        penalties: None where no row has any.
        draws: None where all rows are greedy (else none is).
    """

    rows: Tensor
    members: Sequence[int]
    penalties: TokensSoFar | None
    draws: Draws | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SamplingBatch:
    """What `sample` needs besides logits.

    Args:
        num_rows: rows of the logits.
        any_plain: whether some row needs only an argmax.
        groups: the other rows, each in one group.
        logprob_rows: the rows that report logprobs, and how many likeliest tokens each of them reports.
        rows: what the batch was made of; empty where nobody looked at it.
    """

    num_rows: int
    any_plain: bool
    groups: tuple[RowGroup, ...]
    logprob_rows: tuple[int, ...]
    num_logprobs: tuple[int, ...]
    rows: Sequence[SamplingRow] = ()

    @classmethod
    def greedy(cls, num_rows: int) -> SamplingBatch:
        """A batch in which every row `is_plain`, without a look at any of them."""
        return cls(num_rows=num_rows, any_plain=True, groups=(), logprob_rows=(), num_logprobs=())

    @classmethod
    def make(cls, rows: Sequence[SamplingRow], device: torch.device | str) -> SamplingBatch:
        """Sort rows by need and bring their parameters to the device."""
        drawn = [index for index, row in enumerate(rows) if not row.params.greedy]
        penalized = [index for index, row in enumerate(rows) if row.params.greedy and row.params.penalized]
        asked = [(i, row.params.logprobs) for i, row in enumerate(rows) if row.params.logprobs is not None]
        return cls(
            num_rows=len(rows),
            any_plain=len(drawn) + len(penalized) < len(rows),
            groups=tuple(
                _make_group(rows, members[start : start + MAX_GROUP_ROWS], device)
                for members in (drawn, penalized)
                for start in range(0, len(members), MAX_GROUP_ROWS)
            ),
            logprob_rows=tuple(index for index, _ in asked),
            num_logprobs=tuple(number for _, number in asked),
            rows=rows,
        )


def is_plain(params: SamplingParams) -> bool:
    """Whether an argmax is all there is to it: greedy, no penalties, no logprobs."""
    return params.greedy and not params.penalized and params.logprobs is None


def _make_group(rows: Sequence[SamplingRow], members: list[int], device: torch.device | str) -> RowGroup:
    chosen = [rows[index] for index in members]
    params = [row.params for row in chosen]
    draws = None
    if not params[0].greedy:
        drawn = uniforms([row.seed for row in chosen], [row.position for row in chosen])
        draws = make_draws(params, to_tensor(drawn, np.float64, device), device)
    return RowGroup(
        rows=to_tensor(members, np.int64, device),
        members=members,
        penalties=_tokens_so_far(chosen, device),
        draws=draws,
    )


def make_draws(params: list[SamplingParams], uniforms_S: Tensor, device: torch.device | str) -> Draws:
    """How rows with these parameters draw; `uniforms_S` is on the device already."""
    return Draws(
        uniforms=uniforms_S,
        temperature=to_tensor([p.temperature for p in params], np.float64, device),
        top_k=_row_values(params, lambda p: p.top_k, lambda k: k > 0, np.int64, device),
        top_p=_row_values(params, lambda p: p.top_p, lambda limit: limit < 1, np.float64, device),
        min_p=_row_values(params, lambda p: p.min_p, lambda limit: limit > 0, np.float64, device),
    )


def _row_values(
    params: list[SamplingParams],
    get: Callable[[SamplingParams], float],
    uses: Callable[[float], bool],
    dtype: type[np.generic],
    device: torch.device | str,
) -> RowValues | None:
    used = [(index, value) for index, p in enumerate(params) if uses(value := get(p))]
    if not used:
        return None
    rows, values = zip(*used, strict=True)
    return RowValues(
        rows=None if len(used) == len(params) else to_tensor(rows, np.int64, device),
        values=to_tensor(values, dtype, device),
        largest=max(values),
    )


def _tokens_so_far(chosen: list[SamplingRow], device: torch.device | str) -> TokensSoFar | None:
    if not any(row.params.penalized for row in chosen):
        return None
    token_ids: list[np.ndarray] = []
    # Of each array of `token_ids`: whose it is, and whether it is output.
    owners: list[tuple[int, int]] = []
    for index, row in enumerate(chosen):
        if not row.params.penalized:
            continue
        assert row.prompt_token_ids is not None and row.output_token_ids is not None, "penalties need the tokens so far"
        # Presence and frequency do not look at the prompt, which is often the longer part.
        if row.params.repetition_penalty != 1:
            token_ids.append(row.prompt_token_ids)
            owners.append((index, 0))
        token_ids.append(row.output_token_ids)
        owners.append((index, 1))
    rows, in_output = np.repeat(owners, [len(ids) for ids in token_ids], axis=0).T
    return TokensSoFar(
        rows=to_tensor(rows, np.int64, device),
        token_ids=to_tensor(np.concatenate(token_ids), np.int64, device),
        in_output=to_tensor(in_output, np.int32, device),
        repetition=to_tensor([row.params.repetition_penalty for row in chosen], np.float64, device),
        presence=to_tensor([row.params.presence_penalty for row in chosen], np.float64, device),
        frequency=to_tensor([row.params.frequency_penalty for row in chosen], np.float64, device),
    )


def to_tensor(values: object, dtype: type[np.generic], device: torch.device | str) -> Tensor:
    """A copy on the device, which nothing waits for."""
    return torch.from_numpy(np.array(values, dtype=dtype)).to(device, non_blocking=True)
