"""Whole blocks move: on the device, out to host memory and back, in the order of a plan."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from minivllm.plan import BlockCopy, BlockSwap, StepPlan
from minivllm.runner import block_moves
from minivllm.runner.block_moves import BlockMoves

NUM_BLOCKS, NUM_SLOTS = 7, 11


def _make_tensors() -> list[torch.Tensor]:
    """K/V with layers first, features, and a flag a block: all that there is of the kinds that are kept."""
    kv = torch.arange(3 * NUM_BLOCKS * 2 * 5, dtype=torch.float32).view(3, NUM_BLOCKS, 2, 5)
    features = torch.arange(NUM_BLOCKS * 4, dtype=torch.float16).view(NUM_BLOCKS, 4)
    flags = torch.from_numpy(np.arange(NUM_BLOCKS) % 2 == 0)
    return [kv.transpose(0, 1), features, flags]


def _plan(swaps_out=(), copies=(), swaps_in=()) -> StepPlan:
    return StepPlan(
        step=0,
        released=(),
        new_rows=(),
        table_updates=(),
        swaps_out=tuple(BlockSwap(block_id=b, slot=s) for b, s in swaps_out),
        copies=tuple(BlockCopy(source=s, target=t) for s, t in copies),
        swaps_in=tuple(BlockSwap(block_id=b, slot=s) for b, s in swaps_in),
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), staged_bytes=st.sampled_from([1, 200, 1 << 20]))
def test_blocks_hold_what_plain_lists_say(data, staged_bytes: int) -> None:
    """Against one move after the other on lists, with pieces of a block, of some blocks, and of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_moves, "_STAGED_BYTES", staged_bytes)
        tensors = _make_tensors()
        moves = BlockMoves(tensors, NUM_SLOTS)
        blocks = list(range(NUM_BLOCKS))
        first = [tensor.clone() for tensor in tensors]
        host: dict[int, int] = {}
        for _ in range(data.draw(st.integers(1, 4))):
            blocks_in_order = st.permutations(range(NUM_BLOCKS))
            slots = data.draw(st.permutations(range(NUM_SLOTS)))
            out = list(zip(data.draw(blocks_in_order)[: data.draw(st.integers(0, NUM_BLOCKS))], slots, strict=False))
            copies = list(zip(data.draw(blocks_in_order), data.draw(blocks_in_order), strict=True))
            copies = copies[: data.draw(st.integers(0, 3))]
            readable = [slot for slot in host if slot not in {slot for _, slot in out}]
            back = list(zip(data.draw(blocks_in_order), readable, strict=False))
            moves.apply(_plan(out, copies, back))
            host |= {slot: blocks[block] for block, slot in out}
            for (_, target), held in zip(copies, [blocks[source] for source, _ in copies], strict=True):
                blocks[target] = held
            for block, slot in back:
                blocks[block] = host.pop(slot)
        for tensor, before in zip(tensors, first, strict=True):
            assert torch.equal(tensor, before[blocks])


def test_a_block_leaves_before_it_is_written_and_comes_back_last() -> None:
    tensors = _make_tensors()
    first = [tensor.clone() for tensor in tensors]
    moves = BlockMoves(tensors, NUM_SLOTS)
    moves.apply(_plan(swaps_out=[(0, 4)]))
    # Block 1 leaves, is the target of a copy, and its slot's neighbour comes into the copy's source's neighbour.
    moves.apply(_plan(swaps_out=[(1, 5)], copies=[(2, 1)], swaps_in=[(3, 4)]))
    moves.apply(_plan(swaps_in=[(6, 5)]))
    for tensor, before in zip(tensors, first, strict=True):
        assert torch.equal(tensor, before[[0, 2, 2, 0, 4, 5, 1]])


def test_without_swapping_no_host_memory_is_taken() -> None:
    assert BlockMoves(_make_tensors(), 0).host_bytes == 0
    assert BlockMoves(_make_tensors(), 3).host_bytes == 3 * (3 * 2 * 5 * 4 + 4 * 2 + 1)
