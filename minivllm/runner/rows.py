"""The host's view of the running requests: a row each, told by the plans what changed, so that building a step's inputs
is a few vectorized look-ups, whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minivllm.attention.base import TreeQueries
from minivllm.plan import Chunk, NewRow, StepPlan
from minivllm.sampling_params import SamplingParams
from minivllm.speculation.tree import DraftTree


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedChunks:
    """R chunks of one step, packed into N tokens: chunk r has `[cu_seqlens_q[r], cu_seqlens_q[r + 1])`.

    A token's place is where it stands in its row and where its K/V lies in the block table; its position is what the
    model takes it for. They differ in a tree of drafts only, whose nodes lie side by side.
    """

    # [N] int64 each
    token_rows: np.ndarray
    places: np.ndarray
    positions: np.ndarray
    # [N] int64, block_id * block_size + offset
    slot_mapping: np.ndarray
    # [R + 1] int32
    cu_seqlens_q: np.ndarray
    # [R] int64
    context_lens: np.ndarray
    # [R, most blocks of a chunk] int32, padded with -1
    block_table: np.ndarray
    # [num_samples] int64, packed indices of the tokens whose logits are sampled from: the last of each sampling chunk,
    # and its drafts
    sample_indices: np.ndarray
    trees: TreeQueries | None = None


class Rows:
    """What the host knows of each row: block table, prompt length, sampling parameters.

    Args:
        max_rows: requests that run at once.
        max_model_len: tokens of the longest of them.
        block_size: tokens a block.
    """

    def __init__(self, max_rows: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        # [max_rows, max_blocks] int32, padded with -1
        self.block_table = np.full((max_rows, -(-max_model_len // block_size)), -1, dtype=np.int32)
        self.num_prompt_tokens = np.zeros(max_rows, dtype=np.int64)
        self.params: list[SamplingParams] = [SamplingParams()] * max_rows
        self.seeds = [0] * max_rows
        self._row_of: dict[int, int] = {}
        self._free = list(range(max_rows - 1, -1, -1))

    def of(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """[R] int64, the row of each chunk."""
        return np.array([self._row_of[chunk.request_id] for chunk in chunks], dtype=np.int64)

    def row_of(self, request_id: int) -> int:
        return self._row_of[request_id]

    def release(self, plan: StepPlan) -> None:
        for request_id in plan.released:
            # A request that ended before its first step never had a row.
            row = self._row_of.pop(request_id, None)
            if row is not None:
                self._free.append(row)

    def add(self, new: NewRow) -> int:
        """The row of a request that starts."""
        row = self._free.pop()
        self._row_of[new.request_id] = row
        self.num_prompt_tokens[row] = new.num_prompt_tokens
        self.block_table[row] = -1
        self.params[row] = new.sampling_params
        self.seeds[row] = new.sampling_seed
        return row

    def update_tables(self, plan: StepPlan) -> None:
        for update in plan.table_updates:
            row = self._row_of[update.request_id]
            self.block_table[row, update.first : update.first + len(update.block_ids)] = update.block_ids

    def pack(
        self,
        chunks: Sequence[Chunk],
        rows: np.ndarray,
        num_drafts: np.ndarray | None = None,
        tree: DraftTree | None = None,
    ) -> PackedChunks:
        """Lay chunks out side by side, in their order.

        Args:
            chunks, rows: R chunks, and their rows as from `of`.
            num_drafts: [R] int64, drafts behind each chunk, in its row; None where nobody has any.
            tree: their shape; None is a chain.
        """
        num_rows, size = len(chunks), self.block_size
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        samples = np.array([i for i, chunk in enumerate(chunks) if chunk.samples], dtype=np.int64)
        trees = None
        if num_drafts is None and all(chunk.num_tokens == 1 for chunk in chunks):
            # Decodes only, the usual step.
            cu_seqlens_q = np.arange(num_rows + 1, dtype=np.int32)
            token_rows, places, context_lens = rows, starts, starts + 1
            positions, sample_indices = places, samples
        else:
            counts = np.array([chunk.num_tokens for chunk in chunks], dtype=np.int64)
            if num_drafts is not None:
                counts += num_drafts
            cu_seqlens_q = np.zeros(num_rows + 1, dtype=np.int32)
            np.cumsum(counts, out=cu_seqlens_q[1:])
            token_rows = np.repeat(rows, counts)
            places = np.arange(len(token_rows)) + np.repeat(starts - cu_seqlens_q[:-1], counts)
            context_lens = starts + counts
            positions, sample_indices = places, cu_seqlens_q[1:][samples].astype(np.int64) - 1
            if num_drafts is not None:
                num_sampled = num_drafts[samples] + 1
                first = sample_indices + 1 - num_sampled
                ends = np.cumsum(num_sampled)
                total = int(ends[-1]) if len(ends) else 0
                sample_indices = np.arange(total) + np.repeat(first - ends + num_sampled, num_sampled)
                if tree is not None:
                    positions, trees = _grow(tree, num_drafts, starts, cu_seqlens_q, places)
        num_blocks = -(-int(context_lens.max()) // size)
        return PackedChunks(
            token_rows=token_rows,
            places=places,
            positions=positions,
            slot_mapping=self.slots(token_rows, places),
            cu_seqlens_q=cu_seqlens_q,
            context_lens=context_lens,
            block_table=self.block_table[rows, :num_blocks],
            sample_indices=sample_indices,
            trees=trees,
        )

    def slots(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """[N] int64, where the K/V of these places of these rows lie."""
        size = self.block_size
        return self.block_table[rows, places // size] * np.int64(size) + places % size


def _grow(
    tree: DraftTree, num_drafts: np.ndarray, starts: np.ndarray, cu_seqlens_q: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, TreeQueries]:
    """Positions [N] of a batch whose drafts are trees, and what their queries see."""
    positions, seen = places.copy(), np.zeros(len(places), dtype=np.uint64)
    depths = np.array((0, *tree.depths), dtype=np.int64)
    for chunk in np.flatnonzero(num_drafts).tolist():
        num_nodes, first = int(num_drafts[chunk]), int(cu_seqlens_q[chunk])
        own = slice(first, first + num_nodes + 1)
        positions[own] = starts[chunk] + depths[: num_nodes + 1]
        seen[own] = tree.seen_bits(num_nodes)
    return positions, TreeQueries(is_tree=num_drafts > 0, seen=seen)
