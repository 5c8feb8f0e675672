"""The device's own view of the running requests: a row each, of tokens, block table and sampling parameters.

The newest token of a row is written by the step that samples it and read by the next one, without the host: that is
what lets the host run ahead. A plan sends what is new; a step that only decodes sends two int32 a request.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.plan import NewRow, StepPlan
from minivllm.runner.rows import Rows
from minivllm.sampling.random import fold_seed
from minivllm.sampling_params import SamplingParams
from minivllm.transfer import upload
from minivllm_kernels.prepare_inputs.kernel import gather_tokens, scatter_table_, store_tokens_
from minivllm_kernels.sample.kernel import SamplingState, argmax, sample

# Of the parameters, float64 (what a CPU would compute with) and int32.
_FLOATS = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
_INTS = ("top_k", "num_prompt_tokens")


class Need(enum.IntEnum):
    """What a row, or the neediest row of a step, wants of the sampler."""

    ARGMAX = 0
    DRAW = 1
    # Filters or penalties, too, or a look at the logits afterwards.
    ALL = 2

    @classmethod
    def of(cls, params: SamplingParams) -> Need:
        filtered = not params.greedy and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)
        if filtered or params.penalized or params.logprobs is not None:
            return cls.ALL
        return cls.ARGMAX if params.greedy else cls.DRAW


class DeviceRows:
    """Rows on one device.

    Args:
        rows: the host's view.
        max_rows, max_model_len: as there.
        device: where they live.
    """

    def __init__(self, rows: Rows, max_rows: int, max_model_len: int, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        # [max_rows, max_model_len + 1] int32: prompt, then output
        self.tokens = torch.zeros((max_rows, max_model_len + 1), dtype=torch.int32, device=device)
        # [max_rows, max_blocks] int32, padded with -1
        self.block_table = torch.from_numpy(rows.block_table).to(device, copy=True)
        self._floats = torch.ones((len(_FLOATS), max_rows), dtype=torch.float64, device=device)
        self._ints = torch.zeros((len(_INTS), max_rows), dtype=torch.int32, device=device)
        self._seeds = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.sampling = SamplingState(
            **dict(zip(_FLOATS, self._floats, strict=True)),
            **dict(zip(_INTS, self._ints, strict=True)),
            seed=self._seeds,
        )

    def add(self, new_rows: Sequence[tuple[int, NewRow]]) -> None:
        """Fill the rows of requests that start: tokens and parameters."""
        if not new_rows:
            return
        for row, new in new_rows:
            token_ids = upload(np.array(new.token_ids, dtype=np.int32), self._device)
            self.tokens[row, : len(new.token_ids)].copy_(token_ids)
        params = [new.sampling_params for _, new in new_rows]
        floats = [
            (p.temperature, p.top_p, p.min_p, p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
            for p in params
        ]
        ints = [(max(0, p.top_k), new.num_prompt_tokens) for p, (_, new) in zip(params, new_rows, strict=True)]
        seeds = np.array([fold_seed(new.sampling_seed) for _, new in new_rows], dtype=np.uint64).view(np.int64)
        places = upload(np.array([row for row, _ in new_rows], dtype=np.int64), self._device)
        self._floats.index_copy_(1, places, upload(np.array(floats, dtype=np.float64).T.copy(), self._device))
        self._ints.index_copy_(1, places, upload(np.array(ints, dtype=np.int32).T.copy(), self._device))
        self._seeds.index_copy_(0, places, upload(seeds, self._device))

    def update_tables(self, plan: StepPlan) -> None:
        """Bring the plan's new entries over."""
        count = sum(len(update.block_ids) for update in plan.table_updates)
        if count == 0:
            return
        entries = np.empty((3, count), dtype=np.int32)
        end = 0
        for update in plan.table_updates:
            start, end = end, end + len(update.block_ids)
            entries[0, start:end] = self._rows.row_of(update.request_id)
            entries[1, start:end] = np.arange(update.first, update.first + end - start)
            entries[2, start:end] = update.block_ids
        rows, columns, values = upload(entries, self._device)
        scatter_table_(self.block_table, rows, columns, values)

    def gather(self, token_rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Of packed tokens, given by row [N] int32 (-1 pads) and position [N] int64: ids and slots, [N] int64 each."""
        token_ids, slots = torch.empty_like(positions), torch.empty_like(positions)
        gather_tokens(
            self.tokens,
            self.block_table,
            token_rows,
            positions,
            block_size=self._rows.block_size,
            token_ids=token_ids,
            slot_mapping=slots,
        )
        return token_ids, slots

    def store(self, places: np.ndarray, token_ids: Tensor) -> None:
        """Put tokens, [N] int64 on the device, to their places, [2, N] int32: rows (-1 pads) and positions."""
        self.keep(upload(np.ascontiguousarray(places, dtype=np.int32), self._device), token_ids)

    def keep(self, places: Tensor, token_ids: Tensor) -> None:
        """As `store`, with places on the device."""
        store_tokens_(self.tokens, places[0], places[1], token_ids)

    def warm_up(self) -> None:
        """Launch for a row of nobody what adding, gathering and storing launches."""
        nobody = torch.full((1,), -1, dtype=torch.int32, device=self._device)
        store_tokens_(self.tokens, nobody, nobody, nobody.long())
        scatter_table_(self.block_table, nobody, nobody, nobody)
        self.gather(nobody, torch.zeros(1, dtype=torch.int64, device=self._device))

    def sample_(
        self, logits: Tensor, rows: Tensor, positions: Tensor, need: Need, sampled: Tensor, *, store: bool = True
    ) -> None:
        """Choose each row's next token, and keep it in its row.

        Drafts are behind the newest token in its row, so each of their logits sees those before it. When all rows have
        their token, what is kept takes the drafts' places: where a draft stands they are the same.

        Args:
            logits: [M, V].
            rows: [M] int32, -1 pads.
            positions: [M] int32, where in its request the token will stand.
            need: of the neediest row.
            sampled: [M] int64 to fill; -1 where logits are no numbers.
            store: False where positions do not tell drafts apart: in trees.
        """
        if need is Need.ARGMAX:
            argmax(logits, out_tokens=sampled)
        else:
            sample(
                logits,
                rows=rows,
                positions=positions,
                state=self.sampling,
                tokens=self.tokens,
                out_tokens=sampled,
                penalties=need is Need.ALL,
                filters=need is Need.ALL,
            )
        if store:
            store_tokens_(self.tokens, rows, positions, sampled)
