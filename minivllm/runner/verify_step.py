"""A step in which everybody brings its newest token and drafts behind it, from buffers that stay where they are: what a
CUDA graph can hold.

Every request gets the same number of queries; who has fewer drafts has queries of nobody behind them, which write
nothing, and which nobody before them sees. A request is a tile of the prefill kernel, so its keys are read once for all
of its queries. (`DecodeStep` verifies, too: with a row a query, which splits a long context over the GPU where few
requests share it, and reads its keys once a query.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.triton_backend import Prefills, TritonAttention, TritonMetadata
from minivllm.models.llama import Llama
from minivllm.runner.device_rows import DeviceRows, Need
from minivllm.runner.forward import attend_with
from minivllm.transfer import upload
from minivllm_kernels.prepare_inputs.kernel import store_rows_
from minivllm_kernels.prepare_inputs.verification.kernel import prepare_verification

# Pairs of a request and a K/V head, each a program of the prefill kernel, below which most of a GPU would be idle.
_FEW_PAIRS = 32


def few_requests(num_kv_heads: int) -> int:
    """Up to how many requests a row a query, split over the GPU, is the better way to verify."""
    return max(1, _FEW_PAIRS // num_kv_heads)


def draft_counts(most: int, varies: bool) -> tuple[int, ...]:
    """Numbers of drafts that steps are padded to, ascending: the most alone, or where lengths are chosen step by step
    each up to 8, and powers of two from there."""
    if not varies:
        return (most,)
    return tuple(sorted({most, *range(1, min(most, 9)), *(1 << i for i in range(4, 8) if 1 << i < most)}))


class VerifyStep:
    """The buffers of the widest batch, and the computation on the first rows of them.

    Args:
        model: what computes.
        attention: over the K/V pool.
        rows: the requests on the device.
        max_rows: requests in one step.
        max_drafts: of one request.
        features: see `DecodeStep`.
    """

    def __init__(
        self,
        model: Llama,
        attention: TritonAttention,
        rows: DeviceRows,
        max_rows: int,
        max_drafts: int,
        features: Tensor | None = None,
    ) -> None:
        self._model = model
        self._attention = attention
        self._rows = rows
        self._features = features
        device = rows.tokens.device
        self._device = device
        block_size, num_queries = attention.shape.block_size, max_rows * (1 + max_drafts)
        # Row, position of the newest token and number of drafts of each request; together, so that one copy brings
        # them.
        self._inputs = torch.full((3, max_rows), -1, dtype=torch.int32, device=device)
        # Token, position, slot of each query, and where what follows it belongs.
        self._wide = torch.zeros((3, num_queries), dtype=torch.int64, device=device)
        self._places = torch.full((2, num_queries), -1, dtype=torch.int32, device=device)
        self._sampled = torch.zeros(num_queries, dtype=torch.int64, device=device)
        self._context_lens = torch.zeros(max_rows, dtype=torch.int32, device=device)
        # Queries of nobody may end behind the longest sequence.
        columns = -(-(rows.tokens.shape[1] + max_drafts) // block_size)
        self._table = torch.zeros((max_rows, columns), dtype=torch.int32, device=device)
        self._requests = torch.arange(max_rows + 1, dtype=torch.int32, device=device)
        self._cu_seqlens: dict[int, Tensor] = {}
        # [num_queries, V], made when somebody looks at logits: those of all graphs are in one place.
        self._logits: Tensor | None = None

    def fill(self, rows: np.ndarray, positions: np.ndarray, num_drafts: np.ndarray, size: int) -> None:
        """Say who verifies what, [R] each, padded to `size`."""
        inputs = np.full((3, size), -1, dtype=np.int32)
        inputs[:, : len(rows)] = rows, positions, num_drafts
        self._inputs[:, :size].copy_(upload(inputs, self._device), non_blocking=True)

    def place(self, rows: Tensor, positions: Tensor, num_drafts: Tensor) -> None:
        """As `fill`, by what is on the device: [size] int32 each."""
        for own, given in zip(self._inputs, (rows, positions, num_drafts), strict=True):
            own[: len(rows)].copy_(given)

    def compute(self, size: int, num_drafts: int, need: Need | None) -> tuple[Tensor, Tensor]:
        """Run what `fill` said.

        Args:
            size: as given there.
            num_drafts: at least those of any request.
            need: of the neediest row; None samples nothing.

        Returns:
            of each of a request's `1 + num_drafts` queries, somebody's or not, the token sampled [N] int64 (-1 where
            logits are no numbers), and logits [N, V].
        """
        num_queries = 1 + num_drafts
        end = size * num_queries
        rows, positions, counts = (self._inputs[i, :size] for i in range(3))
        token_ids, places, slots = (self._wide[i, :end] for i in range(3))
        query_rows, targets = (self._places[i, :end] for i in range(2))
        context_lens, table = self._context_lens[:size], self._table[:size]
        prepare_verification(
            self._rows.tokens,
            self._rows.block_table,
            rows,
            positions,
            counts,
            block_size=self._attention.shape.block_size,
            token_ids=token_ids,
            out_positions=places,
            slot_mapping=slots,
            query_rows=query_rows,
            targets=targets,
            context_lens=context_lens,
            batch_table=table,
        )
        if num_queries not in self._cu_seqlens:
            self._cu_seqlens[num_queries] = self._requests * num_queries
        prefills = Prefills(
            block_table=table,
            context_lens=context_lens,
            cu_seqlens_q=self._cu_seqlens[num_queries][: size + 1],
            max_query_len=num_queries,
        )
        metadata = TritonMetadata(slot_mapping=slots, decodes=None, prefills=prefills)
        hidden = self._model.forward(token_ids, places, attend_with(self._attention, metadata))
        if self._features is not None:
            store_rows_(self._features, slots, hidden)
        logits = self._model.compute_logits(hidden)
        if need is None or need is Need.ALL:
            if self._logits is None:
                self._logits = logits.new_empty(len(self._sampled), logits.shape[1])
            logits = self._logits[:end].copy_(logits)
        sampled = self._sampled[:end]
        if need is not None:
            self._rows.sample_(logits, query_rows, targets, need, sampled)
        return sampled, logits
