"""Whole blocks from place to place: on the device for copy-on-write, and between the device and host memory for
requests that are swapped out.

On a GPU host memory is pinned, nothing waits, and the stream keeps the order of steps: a slot is read after it was
written, and a block is written after it was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.plan import BlockCopy, BlockSwap, StepPlan
from minivllm.transfer import upload

# On the way between device and host, so much device memory is used at most (or one block's).
_STAGED_BYTES = 64 * 1024 * 1024


class BlockMoves:
    """Executes the copies of plans.

    Args:
        tensors: all that is kept of blocks, [num_blocks, ...] each, on the device or on the host.
        num_slots: blocks that host memory has room for.
    """

    def __init__(self, tensors: Sequence[Tensor], num_slots: int) -> None:
        self._tensors = tuple(tensors)
        # [num_slots, ...] each: what is kept of a block lies in one piece.
        self._host = [
            torch.empty((num_slots, *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            for tensor in (self._tensors if num_slots else ())
        ]

    @property
    def host_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._host)

    def apply(self, plan: StepPlan) -> None:
        """All of a plan's, in the plan's order."""
        if plan.swaps_out:
            self._swap_out(plan.swaps_out)
        if plan.copies:
            self._copy(plan.copies)
        if plan.swaps_in:
            self._swap_in(plan.swaps_in)

    def _copy(self, copies: Sequence[BlockCopy]) -> None:
        places = np.array([(copy.source, copy.target) for copy in copies], dtype=np.int64).T.copy()
        for tensor in self._tensors:
            sources, targets = upload(places, tensor.device)
            tensor.index_copy_(0, targets, tensor.index_select(0, sources))

    def _swap_out(self, swaps: Sequence[BlockSwap]) -> None:
        for tensor, host in zip(self._tensors, self._host, strict=True):
            for blocks, runs in _pieces(swaps, tensor):
                staged = tensor.index_select(0, blocks)
                for slot, first, end in runs:
                    host[slot : slot + end - first].copy_(staged[first:end], non_blocking=True)

    def _swap_in(self, swaps: Sequence[BlockSwap]) -> None:
        for tensor, host in zip(self._tensors, self._host, strict=True):
            for blocks, runs in _pieces(swaps, tensor):
                staged = torch.empty((len(blocks), *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
                for slot, first, end in runs:
                    staged[first:end].copy_(host[slot : slot + end - first], non_blocking=True)
                tensor.index_copy_(0, blocks, staged)


def _pieces(swaps: Sequence[BlockSwap], tensor: Tensor) -> Iterator[tuple[Tensor, list[tuple[int, int, int]]]]:
    """Swaps in pieces of bounded size.

    Returns:
        Of each piece its blocks, [n] int64 beside the tensor, and its runs of neighbouring slots: (slot, first, end)
        says that blocks `[first, end)` of the piece go with the slots from `slot` on.
    """
    most = max(1, _STAGED_BYTES // max(1, tensor[0].nbytes))
    for start in range(0, len(swaps), most):
        piece = swaps[start : start + most]
        blocks = upload(np.array([swap.block_id for swap in piece], dtype=np.int64), tensor.device)
        runs: list[tuple[int, int, int]] = []
        for i, swap in enumerate(piece):
            if runs and swap.slot == runs[-1][0] + i - runs[-1][1]:
                runs[-1] = (*runs[-1][:2], i + 1)
            else:
                runs.append((swap.slot, i, i + 1))
        yield blocks, runs
