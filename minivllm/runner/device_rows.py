"""The device's own view of the running requests: a row each, of tokens, block table and sampling parameters.

The newest token of a row is written by the step that samples it and read by the next one, without the host: that is
what lets the host run ahead. A plan sends what is new; a step that only decodes sends two int32 a request.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.plan import NewRow, StepPlan
from minivllm.runner.rows import Rows
from minivllm.sampling.random import fold_seed
from minivllm.transfer import upload
from minivllm_kernels.prepare_inputs.kernel import scatter_table_, store_tokens_
from minivllm_kernels.sample.kernel import SamplingState

# Columns of the parameters: float32, then int32 of the same width.
_FLOATS = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
_INTS = ("top_k", "num_prompt_tokens")


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
        self._floats = torch.ones((len(_FLOATS), max_rows), dtype=torch.float32, device=device)
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
        self._floats.index_copy_(1, places, upload(np.array(floats, dtype=np.float32).T.copy(), self._device))
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

    def store(self, rows: Tensor, positions: Tensor, sampled: Tensor) -> None:
        """The tokens that a step sampled: rows and positions [M] int32 (-1 pads), sampled [M] int64."""
        store_tokens_(self.tokens, rows, positions, sampled)
