"""Which drafts stand, and what follows them: from the target's logits after the newest token and after each draft, to
the accepted drafts and one token more, distributed as if the target had drawn them one at a time.

Every row of logits gets the token that its request would go on with, were this row reached; then a draft stands while
its row's token is the draft itself, and the first other token ends the run. Three kinds of rows, one rule:

- a point (the drafter chose, and had no choice: an argmax, a look-up; all drafts of greedy requests): the row's own
  TOKEN draw, what `sample` gives. That is the rule below for a drafter whose whole weight is on x, which accepts x
  with probability p(x) and else draws from p without x; and a seeded request gets the very tokens that it gets alone;
- a draft x drawn from q: x with probability min(1, p(x) / q(x)), by the ACCEPT uniform of its position; else a draw
  from max(0, p - q), normalized, by the RESIDUAL uniform (Leviathan et al., arXiv 2211.17192, section 2.3 and appendix
  A.1). p is what `sample` draws from, after penalties, temperature and filters, and q may be anything, as long as x was
  drawn from it;
- the row after the last draft: a TOKEN draw.

(Where p and q are equal but for rounding, a replacement may be the draft again. Then it stands, too: what follows it
was drafted and scored for it.)

A uniform is used twice only where its first use came to nothing: positions beyond a rejection are drafted again.

Shape suffixes: M rows of logits, R requests, Q of them with drawn drafts, K most drafts of one, V vocabulary, S rows of
a sampling group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from minivllm.sampling.batch import RowGroup, SamplingBatch, to_tensor
from minivllm.sampling.random import Stream, uniforms
from minivllm.sampling.sampler import RowMax, SampleOutput, draw_tokens, invert, sample, torch_row_max

_STREAMS = np.array([Stream.ACCEPT, Stream.RESIDUAL], dtype=np.uint64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Chains:
    """Drafts of the requests that sample in a step, each a chain. Request r has `num_drafts[r] + 1` consecutive rows of
    logits: after its newest token, then after each draft.

    Args:
        num_drafts: [R] ints on the host, 0 for a request that did not draft; its one row is sampled as ever.
        token_ids: [R, K] int64 on the host or on the device; what lies beyond a request's drafts is not looked at.
        drawn: [Q] ascending requests whose drafts were drawn from `weights`; those of all others are points.
        weights: [Q, K, V] float64 on the device, unnormalized: what draft j of request `drawn[i]` was drawn from
            (`DraftBatch`); rows beyond its drafts are not looked at. Rows of greedy requests are not either: theirs are
            points. One that is not finite draws nothing that is accepted.
    """

    num_drafts: np.ndarray
    token_ids: np.ndarray | Tensor
    drawn: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VerifyOutput:
    """What became of each request's drafts, on the host.

    Args:
        token_ids: of each request its accepted drafts, then one token of the target.
        num_accepted: how many drafts those are.
        finite: False where a row that was reached holds logits that are no numbers: it is the row of the last token,
            which means nothing.
        logprobs: one {token: logprob} a token, as in `Logprobs.of_rows`; empty where the request asked for none.
    """

    token_ids: list[list[int]]
    num_accepted: list[int]
    finite: list[bool]
    logprobs: list[tuple[dict[int, float], ...]]


def verify(logits_MV: Tensor, batch: SamplingBatch, chains: Chains, row_max: RowMax = torch_row_max) -> VerifyOutput:
    """Verify the drafts of a step. Waits for the device once, at its end (and once more for logprobs).

    Args: as `sample_chains`.
    """
    return accept_chains(sample_chains(logits_MV, batch, chains, row_max), chains)


def sample_chains(
    logits_MV: Tensor, batch: SamplingBatch, chains: Chains, row_max: RowMax = torch_row_max
) -> SampleOutput:
    """The token that each row's request goes on with, were the row reached: the draft itself where it is accepted.

    Args:
        logits_MV: [M, V] float32, M = sum(num_drafts + 1), not changed.
        batch: what the M rows want: row j of a request has the position of its newest token + 1 + j, and tokens so far
            that end with the j drafts before it.
        chains: the drafts.
        row_max: see `sample`.
    """
    if chains.weights is None or not batch.groups:
        return sample(logits_MV, batch, row_max)
    drawn = _DrawnDrafts(batch, chains, chains.weights)
    return sample(logits_MV, batch, row_max, drawn.draw)


def accept_chains(output: SampleOutput, chains: Chains) -> VerifyOutput:
    """How far each request's drafts agree with the tokens of its rows. Waits for the device.

    Args:
        output: from `sample_chains`.
        chains: as there.
    """
    num_rows = len(output.token_ids)
    parts = [output.token_ids, output.finite]
    if isinstance(chains.token_ids, Tensor):
        parts.append(chains.token_ids.reshape(-1))
    # One copy, so one wait.
    values = torch.cat(parts).tolist()
    tokens, finite = values[:num_rows], values[num_rows : 2 * num_rows]
    drafts = values[2 * num_rows :] if isinstance(chains.token_ids, Tensor) else chains.token_ids.reshape(-1).tolist()
    logprobs = {} if output.logprobs is None else output.logprobs.of_rows()
    verified = VerifyOutput(token_ids=[], num_accepted=[], finite=[], logprobs=[])
    width, first = chains.token_ids.shape[1], 0
    for request, num_drafts in enumerate(chains.num_drafts.tolist()):
        last, draft = first, request * width
        end = first + num_drafts
        while last < end and tokens[last] == drafts[draft] and finite[last]:
            last += 1
            draft += 1
        verified.token_ids.append(tokens[first : last + 1])
        verified.num_accepted.append(last - first)
        verified.finite.append(bool(finite[last]))
        verified.logprobs.append(tuple(logprobs[row] for row in range(first, last + 1)) if first in logprobs else ())
        first = end + 1
    assert first == num_rows, f"{num_rows} rows of logits for {first} newest tokens and drafts"
    return verified


class _DrawnDrafts:
    """The rows whose draft was drawn: which they are, and what takes the place of their TOKEN draw."""

    def __init__(self, batch: SamplingBatch, chains: Chains, weights: Tensor) -> None:
        num_requests, num_drafts, width = len(chains.num_drafts), chains.num_drafts, chains.token_ids.shape[1]
        assert weights.shape[:2] == (len(chains.drawn), width), "weights of other drafts"
        self._rows = batch.rows
        self._weights = weights.reshape(-1, weights.shape[-1])
        self._token_ids = chains.token_ids.reshape(-1)
        # [M] request of each row, and how many drafts are before it
        request_M = np.repeat(np.arange(num_requests), num_drafts + 1)
        depth_M = np.arange(len(request_M)) - (np.cumsum(num_drafts + 1) - num_drafts - 1)[request_M]
        place_R = np.full(num_requests, -1)
        place_R[chains.drawn] = np.arange(len(chains.drawn))
        place_M = place_R[request_M]
        drawn_M = (depth_M < num_drafts[request_M]) & (place_M >= 0)
        # [3, M]: whether the row's draft was drawn; and if so, its places in flattened weights and flattened token ids
        self._places_M = np.stack([drawn_M, place_M * width + depth_M, request_M * width + depth_M]) * drawn_M

    def draw(self, weights_SV: Tensor, group: RowGroup) -> Tensor:
        """`draw_tokens`, but for the rows whose draft was drawn."""
        assert group.draws is not None
        device = weights_SV.device
        places_S = self._places_M if len(group.members) == len(self._rows) else self._places_M[:, group.members]
        if not places_S[0].any():
            return draw_tokens(weights_SV, group)
        rows = [self._rows[row] for row in group.members]
        seeds, positions = [row.seed for row in rows], [row.position for row in rows]
        hashed = uniforms(seeds * 2, positions * 2, np.repeat(_STREAMS, len(rows)))
        accept_S, residual_S = to_tensor(hashed, np.float64, device).view(2, -1)
        drawn_S, weight_S, draft_S = to_tensor(places_S, np.int64, device)
        if isinstance(self._token_ids, Tensor):
            token_S = self._token_ids.index_select(0, draft_S)
        else:
            token_S = to_tensor(self._token_ids[places_S[2]], np.int64, device)
        # Place 0 may hold no draft.
        token_S = token_S * drawn_S

        # Rows without a drawn draft go along: nothing of q is taken from them, so that p is left.
        q_SV = self._weights.index_select(0, weight_S)
        scale_S = weights_SV.sum(dim=-1) / q_SV.sum(dim=-1)
        scale_S.masked_fill_(drawn_S == 0, 0)
        accepted_S = accepts(weights_SV, q_SV, scale_S, token_S, accept_S)
        left_SV = residual_(weights_SV, q_SV, scale_S)
        ids_S = invert(left_SV, torch.where(drawn_S > 0, residual_S, group.draws.uniforms))
        return torch.where(accepted_S & (drawn_S > 0), token_S, ids_S)


def accepts(p_SV: Tensor, q_SV: Tensor, scale_S: Tensor, token_S: Tensor, uniforms_S: Tensor) -> Tensor:
    """[S] bool: whether a token that was drawn from q stands for one of p, with probability min(1, p / q).

    Args:
        p_SV, q_SV: [S, V] float64, unnormalized.
        scale_S: what q is multiplied by to have the sum of p.
        token_S, uniforms_S: [S].
    """
    p_S, q_S = (values_SV.gather(-1, token_S[:, None]).squeeze(-1) for values_SV in (p_SV, q_SV))
    return uniforms_S * (q_S * scale_S) < p_S


def residual_(p_SV: Tensor, q_SV: Tensor, scale_S: Tensor) -> Tensor:
    """[S, V] unnormalized: what a rejected token is replaced from, so that both ways together draw from p.

    Where nothing is left, p and q are equal but for rounding, and p serves as well; where q is no numbers, nothing
    drawn from it is accepted, and p is what has to be drawn from.

    Args: as in `accepts`; `q_SV` is used up.
    """
    left_SV = q_SV.mul_(-scale_S[:, None]).add_(p_SV).clamp_(min=0).nan_to_num_(nan=0.0)
    nothing_S1 = left_SV.sum(dim=-1, keepdim=True) == 0
    # A `where` over whole rows costs several times as much on a CPU.
    return left_SV.addcmul_(p_SV, nothing_S1.to(p_SV.dtype))
