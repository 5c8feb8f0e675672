"""A drafter's own K/V, in the engine's blocks: slot for slot beside the target's, under the same block tables.

Nothing is computed before it is needed: when a request drafts, the drafter first reads what it has not read yet, a
prompt or the tokens of steps without drafts. What it has read of a block stays with the block, so a request that takes
over a cached prefix takes over the drafter's part of it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minivllm.attention.base import AttentionBackend, AttentionShape, PackedBatch
from minivllm.models.spec import ModelSpec
from minivllm.plan import Chunk, StepPlan
from minivllm.runner.kernels import attention_of
from minivllm.runner.rows import Rows
from minivllm.speculation.base import DraftRequest
from minivllm.speculation.model import DraftHost
from minivllm.speculation.target import DraftTarget
from minivllm.transfer import upload


@dataclass(slots=True)
class _Progress:
    """Of one request: K/V of positions [0, num_read) are those of its tokens, and up to `num_ahead` those of its last
    drafts. Its first `num_noted` blocks are known to be read whole."""

    num_read: int
    num_ahead: int
    num_noted: int


class DraftCache:
    """K/V of a drafter with `spec.num_layers` layers, and how far it has read.

    Args:
        spec: the drafter's shape.
        target: what it drafts for.
    """

    def __init__(self, spec: ModelSpec, target: DraftTarget) -> None:
        self._spec = spec
        self._target = target
        self.block_size = target.config.cache.block_size
        per_token = spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim
        self.bytes_per_block = self.block_size * per_token * target.dtype.itemsize
        self._progress: dict[int, _Progress] = {}

    def allocate(self, num_blocks: int) -> None:
        spec, target = self._spec, self._target
        # Masked keys are multiplied by 0, and 0 times a stray NaN is NaN.
        self.kv_cache = torch.zeros(
            (spec.num_layers, num_blocks, self.block_size, 2, spec.num_kv_heads, spec.head_dim),
            dtype=target.dtype,
            device=target.device,
        )
        # Blocks that were read whole.
        self._is_read = np.zeros(num_blocks, dtype=bool)
        execution = target.config.execution
        self.attention: AttentionBackend = (execution.attention or attention_of(target.kernels)).make(
            "attention",
            shape=AttentionShape(
                num_layers=spec.num_layers,
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                block_size=self.block_size,
                sliding_windows=spec.sliding_windows,
                batch_invariant=execution.batch_invariant,
            ),
            kv_cache=self.kv_cache,
        )

    def update(self, plan: StepPlan) -> None:
        """Requests start behind what was read of the blocks that they share, and new blocks hold nothing yet."""
        if not plan.table_updates:
            return
        started = {new.request_id for new in plan.new_rows}
        starts = {chunk.request_id: chunk.start for chunk in plan.chunks if chunk.request_id in started}
        for update in plan.table_updates:
            num_shared = 0
            if update.first == 0 and update.request_id in started:
                num_shared = starts[update.request_id] // self.block_size
                unread = np.flatnonzero(~self._is_read[list(update.block_ids[:num_shared])])
                num_read = (int(unread[0]) if len(unread) else num_shared) * self.block_size
                self._progress[update.request_id] = _Progress(num_read, num_read, num_read // self.block_size)
            self._is_read[list(update.block_ids[num_shared:])] = False

    def block_tensors(self) -> Sequence[Tensor]:
        """K/V, and on the host whether they were read whole; see `ModelDrafter`."""
        return (self.kv_cache.transpose(0, 1), torch.from_numpy(self._is_read))

    def end(self, request_id: int) -> None:
        self._progress.pop(request_id, None)

    def num_read(self, request_id: int) -> int:
        """K/V of positions [0, num_read) are there."""
        return self._progress[request_id].num_read

    def read(self, requests: Sequence[DraftRequest], rows: Rows) -> None:
        """All known tokens of these requests were read."""
        for request in requests:
            progress = self._progress[request.request_id]
            end = request.num_tokens // self.block_size
            self._is_read[rows.block_table[request.row, progress.num_noted : end]] = True
            progress.num_noted = end
            progress.num_read = progress.num_ahead = request.num_tokens

    def drafted(self, request_id: int, num_tokens: int) -> None:
        """K/V up to here are those of drafts, which may turn out to be right."""
        self._progress[request_id].num_ahead = num_tokens

    def accepted(self, request_id: int, num_tokens: int) -> None:
        """Drafts up to here are right."""
        progress = self._progress.get(request_id)
        if progress is not None:
            progress.num_read = max(progress.num_read, min(progress.num_ahead, num_tokens))
            progress.num_ahead = progress.num_read

    def unread(self, requests: Sequence[DraftRequest], most_tokens: int) -> list[list[tuple[DraftRequest, int, int]]]:
        """What is to be read before these requests can draft, in passes of about `most_tokens` tokens.

        Returns:
            Passes of (request, start, end). The newest tokens of all requests are in the last one.
        """
        parts = [(r, self._progress[r.request_id].num_read, r.num_tokens) for r in requests]
        passes: list[list[tuple[DraftRequest, int, int]]] = []
        last, room = [], most_tokens
        for request, start, end in parts:
            while end - start > max(room, 1) and end - start > 1:
                # Never the newest token.
                cut = min(start + most_tokens, end - 1)
                passes.append([(request, start, cut)])
                start = cut
            last.append((request, start, end))
            room -= end - start
        return [*passes, last]


def pack(parts: Sequence[tuple[DraftRequest, int, int]], host: DraftHost) -> PackedBatch:
    """Tokens [start, end) of each request as a batch; the last one of each is sampled from."""
    chunks = [
        Chunk(request_id=request.request_id, start=start, num_tokens=end - start, samples=True)
        for request, start, end in parts
    ]
    rows = np.array([request.row for request, _, _ in parts], dtype=np.int64)
    packed = host.rows.pack(chunks, rows)
    token_ids = host.token_ids(packed.token_rows, packed.places)
    return PackedBatch(
        token_ids=token_ids,
        positions=upload(packed.positions, token_ids.device),
        slot_mapping=upload(packed.slot_mapping, token_ids.device),
        cu_seqlens_q=packed.cu_seqlens_q,
        context_lens=packed.context_lens,
        block_table=packed.block_table,
        sample_indices=upload(packed.sample_indices, token_ids.device),
    )


def pack_drafts(token_ids: Tensor, requests: Sequence[DraftRequest], offset: int, host: DraftHost) -> PackedBatch:
    """One draft of each request as a batch.

    Args:
        token_ids: [R] int64 on the device.
        requests: theirs.
        offset: of the drafts from the newest token: 1 for the first, 0 for the newest token itself.
        host: the runner.
    """
    rows = np.array([request.row for request in requests], dtype=np.int64)
    places = np.array([request.num_tokens - 1 + offset for request in requests], dtype=np.int64)
    device = token_ids.device
    return PackedBatch(
        token_ids=token_ids,
        positions=upload(places, device),
        slot_mapping=upload(host.rows.slots(rows, places), device),
        cu_seqlens_q=np.arange(len(rows) + 1, dtype=np.int32),
        context_lens=places + 1,
        block_table=host.rows.block_table[rows, : int(places.max()) // host.rows.block_size + 1],
        sample_indices=token_ids.new_empty(0),
    )
