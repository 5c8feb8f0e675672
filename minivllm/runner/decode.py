"""A step that only decodes, from buffers that stay where they are: what a CUDA graph can hold.

All that changes from step to step is two int32 a query, its row and its position. The rest (token, slot, context
length, block table) is looked up on the device; the sampled token goes back into its row there.

A chain of drafts lies behind the newest token in its row, so verifying it is decoding at several positions of one row:
K/V of all queries are written before any of them attends, and a query's context ends with itself. The same graphs
serve it, whatever the number of drafts of each request. What it costs is that each query reads the row's keys anew, if
from a cache; `verify_step` reads them once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.triton_backend import Decodes, Prefills, TritonAttention, TritonMetadata
from minivllm.models.llama import Llama
from minivllm.runner.device_rows import DeviceRows, Need
from minivllm.runner.forward import attend_with
from minivllm.transfer import upload
from minivllm_kernels.prepare_inputs.kernel import prepare_decode, store_rows_


def batch_buckets(max_rows: int) -> tuple[int, ...]:
    """Batch sizes that decode steps are padded to: each size that small batches have, then steps that pad by at most an
    eighth."""
    sizes = {size for size in (1, 2, 4) if size < max_rows}
    size, step = 8, 8
    while size < max_rows:
        sizes.add(size)
        if size >= 8 * step:
            step *= 2
        size += step
    return tuple(sorted(sizes | {max_rows}))


class DecodeStep:
    """The buffers of the widest batch, and the computation on the first rows of them.

    Args:
        model: what computes.
        attention: over the K/V pool.
        rows: the requests on the device.
        max_rows: queries in one step: as many requests, or fewer with drafts.
        features: [num_slots, C], where final hidden states are kept; None keeps none.
    """

    def __init__(
        self,
        model: Llama,
        attention: TritonAttention,
        rows: DeviceRows,
        max_rows: int,
        features: Tensor | None = None,
    ) -> None:
        self._model = model
        self._attention = attention
        self._rows = rows
        self._features = features
        device = rows.tokens.device
        self._device = device
        # Row and position of each request, -1 pads; together, so that one copy brings them.
        self._inputs = torch.full((2, max_rows), -1, dtype=torch.int32, device=device)
        self._token_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._slots = torch.full((max_rows,), -1, dtype=torch.int64, device=device)
        self._context_lens = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._table = torch.zeros((max_rows, rows.block_table.shape[1]), dtype=torch.int32, device=device)
        self._sampled = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._cu_seqlens = torch.arange(max_rows + 1, dtype=torch.int32, device=device)

    def fill(self, rows: np.ndarray, positions: np.ndarray, size: int) -> None:
        """Say who decodes: rows and positions [R], padded to `size`. Drafts in a row are queries of their own."""
        inputs = np.full((2, size), -1, dtype=np.int32)
        inputs[0, : len(rows)] = rows
        inputs[1, : len(rows)] = positions
        self._inputs[:, :size].copy_(upload(inputs, self._device), non_blocking=True)

    def place(self, rows: Tensor, positions: Tensor) -> None:
        """As `fill`, by what is on the device: [size] int32 each."""
        self._inputs[0, : len(rows)].copy_(rows)
        self._inputs[1, : len(rows)].copy_(positions)

    def compute(self, size: int, need: Need | None) -> tuple[Tensor, Tensor]:
        """Run what `fill` said.

        Args:
            size: as given there.
            need: of the neediest row; None samples nothing.

        Returns:
            sampled tokens [size] int64 (-1 where logits are no numbers), and logits [size, V].
        """
        rows, positions = self._inputs[0, :size], self._inputs[1, :size]
        token_ids, places = self._token_ids[:size], self._positions[:size]
        slots, context_lens, table = self._slots[:size], self._context_lens[:size], self._table[:size]
        prepare_decode(
            self._rows.tokens,
            self._rows.block_table,
            rows,
            positions,
            block_size=self._attention.shape.block_size,
            token_ids=token_ids,
            out_positions=places,
            slot_mapping=slots,
            context_lens=context_lens,
            batch_table=table,
        )
        if self._attention.shape.batch_invariant:
            prefills = Prefills(
                block_table=table,
                context_lens=context_lens,
                cu_seqlens_q=self._cu_seqlens[: size + 1],
                max_query_len=1,
            )
            metadata = TritonMetadata(slot_mapping=slots, decodes=None, prefills=prefills)
        else:
            decodes = Decodes(block_table=table, context_lens=context_lens)
            metadata = TritonMetadata(slot_mapping=slots, decodes=decodes, prefills=None)
        hidden = self._model.forward(token_ids, places, attend_with(self._attention, metadata))
        if self._features is not None:
            store_rows_(self._features, slots, hidden)
        logits = self._model.compute_logits(hidden)
        sampled = self._sampled[:size]
        if need is not None:
            self._rows.sample_(logits, rows, positions + 1, need, sampled)
        return sampled, logits
