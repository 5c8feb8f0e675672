"""Victims whose K/V waits for them in host memory."""

from __future__ import annotations

from minivllm.blocks.host_slots import HostSlots
from minivllm.blocks.tables import BlockTables
from minivllm.plan import BlockSwap
from minivllm.request import Request, RequestStatus
from minivllm.scheduler.builder import PlanBuilder
from minivllm.scheduler.preemptions.base import PreemptionMode


class Swapping:
    """Puts swaps into plans, and keeps what is in host memory.

    A request that is swapped out waits with its `num_computed_tokens`, so that to a policy it has as much to compute as
    it had.

    Args:
        mode: says which victims are swapped out.
        slots: where to.
        tables: block tables of running requests.
    """

    def __init__(self, mode: PreemptionMode, slots: HostSlots, tables: BlockTables) -> None:
        self._mode = mode
        self._slots = slots
        self._tables = tables
        # Victims that were to be swapped out, and found too few free slots.
        self.num_fallbacks = 0

    def swap_out(self, request: Request, builder: PlanBuilder) -> bool:
        """Copy the K/V of a victim, which holds its blocks still; False where it is to be computed again."""
        num_blocks = self._tables.num_blocks_for(request.num_computed_tokens)
        if num_blocks == 0 or not self._mode.swaps(request, num_blocks):
            return False
        if num_blocks > self._slots.num_free:
            self.num_fallbacks += 1
            return False
        slots = self._slots.take(request.request_id, num_blocks)
        table = self._tables.table(request.request_id)[:num_blocks]
        builder.swaps_out.extend(BlockSwap(block_id=b, slot=s) for b, s in zip(table, slots, strict=True))
        return True

    def swap_in(self, request: Request, num_shared: int, builder: PlanBuilder) -> None:
        """Copy back what a request that was just let in left behind, but for its first blocks, which are shared."""
        request_id = request.request_id
        if not self._slots.holds(request_id):
            return
        slots = self._slots.slots(request_id)
        table = self._tables.table(request_id)
        for index in range(num_shared, len(slots)):
            builder.swaps_in.append(BlockSwap(block_id=table[index], slot=slots[index]))
        builder.swapped_in.add(request_id)
        self._slots.give_back(request_id)

    def settle(self) -> None:
        """A plan is made."""
        self._slots.settle()

    def forget(self, request_id: int) -> None:
        """The request has ended, wherever it was."""
        self._slots.give_back(request_id)

    def check(self, requests: dict[int, Request]) -> None:
        """Assert that host memory holds what waiting requests have computed, and nothing else."""
        self._slots.check()
        num_taken = 0
        for request_id, request in requests.items():
            swapped = self._slots.holds(request_id)
            assert swapped == (request.status is RequestStatus.WAITING and request.num_computed_tokens > 0)
            if swapped:
                num_blocks = len(self._slots.slots(request_id))
                assert num_blocks == self._tables.num_blocks_for(request.num_computed_tokens)
                num_taken += num_blocks
        assert num_taken == self._slots.num_taken, "host memory is held by nobody"
