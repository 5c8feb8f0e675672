"""The mechanism: turns a policy's order into a plan, and a result into tokens, stops and free blocks.

A plan may be scheduled while the one before it still runs: `advance` takes what is certain of it, its tokens excepted.

There is no prefill phase and no decode phase. A request has `num_tokens` known and `num_computed_tokens` in the cache;
a step computes some of the difference, and when it reaches the newest token, one more is sampled.

A victim gives its blocks back and waits, its tokens kept; its K/V is forgotten, or waits in host memory. Preemption
cannot livelock, whoever is chosen: requests are served in the policy's order, victims come only from those not yet
served in this step, one that is left alone fits the pool, and whoever was let in gets a token before it needs a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from minivllm.blocks.tables import BlockTables
from minivllm.config import SchedulerConfig
from minivllm.plan import Chunk, NewRow, SampledTokens, StepPlan, StepResult, TableUpdate
from minivllm.request import FinishReason, Request, RequestStatus
from minivllm.scheduler.base import SchedulerState, SchedulingPolicy
from minivllm.scheduler.builder import Commit, PlanBuilder
from minivllm.scheduler.drafting import Drafting
from minivllm.scheduler.rules import break_rule, check_plan, check_victim
from minivllm.scheduler.swapping import Swapping
from minivllm.scheduler.victims.base import VictimPolicy


class Scheduler:
    """Owns the queues. One request is in `waiting` or `running`, or it is finished and handed over.

    Args:
        config: budgets.
        policy: order.
        tables: block tables of running requests.
        victims: chooses who is preempted.
        swapping: knows what becomes of a victim's K/V.
        reuse_kv: False forgets all K/V after each token (the baseline without a KV cache).
        drafting: hands out drafts; None where nothing is speculated.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        policy: SchedulingPolicy,
        tables: BlockTables,
        victims: VictimPolicy,
        swapping: Swapping,
        *,
        reuse_kv: bool = True,
        drafting: Drafting | None = None,
    ) -> None:
        self.config = config
        self.policy = policy
        self.tables = tables
        self.victims = victims
        self.swapping = swapping
        self.reuse_kv = reuse_kv
        self.drafting = drafting
        self.running: list[Request] = []
        self.waiting: dict[int, Request] = {}
        self.num_preemptions = 0
        self.num_recomputed_tokens = 0
        self._requests: dict[int, Request] = {}
        self._finished: list[Request] = []
        # Rows that the runner may drop, told with the next plan.
        self._released: list[int] = []
        self._step = 0
        self._watermark_blocks = math.ceil(config.watermark_fraction * tables.pool.num_blocks)
        # Requests whose K/V was forgotten, and is not all computed again: how far each had got.
        self._lost: dict[int, int] = {}

    # Requests in and out

    def add(self, request: Request) -> None:
        self._requests[request.request_id] = request
        self.waiting[request.request_id] = request

    def finish(self, request_id: int, reason: FinishReason, now_s: float, error: str | None = None) -> None:
        """End a request from outside the step: an abort, or a stop string. Unknown and ended ones are left alone."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request, reason, now_s, error)

    def stop(self, request_id: int, num_output_tokens: int, now_s: float) -> None:
        """End a request behind one of its last step's tokens, though it may have ended by a later one."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request, FinishReason.STOP, now_s, None)
        else:
            request = next((r for r in self._finished if r.request_id == request_id), None)
        if request is not None:
            request.cut(num_output_tokens)
            request.finish_reason = FinishReason.STOP

    def take_finished(self) -> list[Request]:
        """Hand over the requests that ended since the last call."""
        finished, self._finished = self._finished, []
        return finished

    @property
    def has_unfinished(self) -> bool:
        return bool(self._requests)

    def get(self, request_id: int) -> Request | None:
        return self._requests.get(request_id)

    # Schedule

    def schedule(self, now_s: float) -> StepPlan:
        """Decide the next step and take the blocks that it needs.

        Raises:
            PolicyError: the policy's plan breaks a rule. Queues and blocks stay consistent.
        """
        state = SchedulerState(
            running=tuple(self.running),
            waiting=self.waiting.values(),
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            num_available_blocks=self.tables.pool.num_available,
            num_blocks=self.tables.pool.num_blocks,
            block_size=self.tables.block_size,
        )
        builder = PlanBuilder(self.config.max_num_batched_tokens)
        for allotment in check_plan(self.policy.plan(state, now_s), self._requests, self.policy, self.config):
            request = self._requests[allotment.request.request_id]
            if request.status is RequestStatus.RUNNING:
                self._serve(request, allotment.num_tokens, builder, now_s)
            elif not builder.closed:
                self._admit(request, allotment.num_tokens, builder, now_s)
        if self.drafting is not None:
            self.drafting.hand_out(builder, self._requests)
        if not builder.chunks and self._requests and not any(r.has_pending_token for r in self._requests.values()):
            break_rule(
                self.policy, "progress", f"nothing is scheduled while {len(self._requests)} requests are unfinished"
            )
        self.swapping.settle()
        released, self._released = tuple(self._released), []
        self._step += 1
        return StepPlan(
            step=self._step,
            released=released,
            new_rows=tuple(builder.new_rows),
            table_updates=tuple(builder.updates),
            copies=tuple(builder.copies),
            chunks=tuple(builder.chunks),
            swaps_out=tuple(builder.swaps_out),
            swaps_in=tuple(builder.swaps_in),
        )

    def _chunk_size(self, remaining: int, wanted: int | None, builder: PlanBuilder) -> int:
        """Tokens to run now; 0 where the budget does not allow it."""
        if not self.config.chunked_prefill and remaining > builder.budget:
            # A prompt beyond the whole budget runs in one step, alone.
            alone = not builder.chunks and remaining > self.config.max_num_batched_tokens
            return remaining if alone else 0
        return min(remaining, builder.budget, remaining if wanted is None else wanted)

    def _fits_kind(self, request: Request, builder: PlanBuilder) -> bool:
        return self.policy.mixed_steps or builder.kind is None or builder.kind == request.is_prefill

    def _serve(self, request: Request, wanted: int | None, builder: PlanBuilder, now_s: float) -> None:
        """Give a running request its next tokens; preempt where there is no block for them."""
        if not self._fits_kind(request, builder):
            return
        num_tokens = self._chunk_size(request.num_tokens - request.num_computed_tokens, wanted, builder)
        if num_tokens == 0:
            return
        end = request.num_computed_tokens + num_tokens
        needed = self.tables.blocks_to_grow(request.request_id, end)
        while needed > self.tables.pool.num_available:
            victim = self._victim(builder, now_s)
            self._preempt(victim, builder, now_s)
            # Whoever was just put out would be let in again at once.
            builder.closed = True
            if victim is request:
                return
        if needed:
            first = len(self.tables.table(request.request_id))
            block_ids = self.tables.grow(request.request_id, end)
            builder.updates.append(TableUpdate(request_id=request.request_id, first=first, block_ids=block_ids))
        self._add_chunk(request, num_tokens, builder)

    def _admit(self, request: Request, wanted: int | None, builder: PlanBuilder, now_s: float) -> None:
        """Let a waiting request in: a seat, and blocks for all of its known tokens, so that a chunked prefill that
        has begun never waits for memory."""
        if not self._fits_kind(request, builder):
            return
        if request.has_pending_token:
            # Preempted a moment ago: a row is made of known tokens only.
            builder.closed = True
            return
        parent = self._requests.get(request.parent_id) if request.parent_id is not None and self.reuse_kv else None
        if parent is not None and parent.status is RequestStatus.ENDING:
            # It holds nothing any more.
            parent = None
        if parent is not None and self._must_wait(parent, request, builder):
            return
        shared, num_kept = self._shareable(request, parent)
        start = max(num_kept, request.num_computed_tokens)
        num_tokens = self._chunk_size(request.num_tokens - start, wanted, builder)
        if num_tokens == 0:
            builder.closed = True
            return
        while not self._has_room(request, shared, num_kept):
            if not self.policy.preemptive or len(self.running) <= len(builder.scheduled):
                builder.closed = True
                return
            victim = self._victim(builder, now_s)
            if victim is parent or self.policy.key(victim, now_s) <= self.policy.key(request, now_s):
                builder.closed = True
                return
            self._preempt(victim, builder, now_s)
            # Its blocks may have been among the shared ones, or have become so.
            shared, num_kept = self._shareable(request, parent)
            start = max(num_kept, request.num_computed_tokens)
            num_tokens = self._chunk_size(request.num_tokens - start, wanted, builder)

        request_id = request.request_id
        self.tables.open(request_id, shared, request.num_tokens, num_kept)
        builder.copies.extend(self.tables.unshare(request_id, num_kept, request.num_tokens))
        for block_id in shared:
            self.tables.pool.record_hit(block_id)
        del self.waiting[request_id]
        self.running.append(request)
        request.status = RequestStatus.RUNNING
        request.num_computed_tokens = start
        if len(request.resumed_at_s) < len(request.preempted_at_s):
            request.resumed_at_s.append(now_s)
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
            # What the cache gave; blocks of a sibling are no hit.
            request.num_cached_tokens = num_kept if parent is None else 0
        builder.new_rows.append(
            NewRow(
                request_id=request_id,
                token_ids=tuple(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                sampling_params=request.sampling_params,
                sampling_seed=request.sampling_seed,
            )
        )
        table = tuple(self.tables.table(request_id))
        builder.updates.append(TableUpdate(request_id=request_id, first=0, block_ids=table))
        self.swapping.swap_in(request, len(shared), builder)
        self._add_chunk(request, num_tokens, builder)

    def _must_wait(self, parent: Request, request: Request, builder: PlanBuilder) -> bool:
        """Whether the prompt that siblings share is not in blocks yet: it is being computed by the first of them, or
        its blocks are in host memory, or on their way from there."""
        if parent.status is not RequestStatus.RUNNING or parent.request_id in builder.swapped_in:
            return True
        return parent.num_computed_tokens < request.num_prompt_tokens

    def _shareable(self, request: Request, parent: Request | None) -> tuple[list[int], int]:
        """Blocks that a waiting request can take over, and how many of their positions it keeps as they are."""
        if parent is not None and request.num_output_tokens == 0:
            # All but the last prompt token, whose logits are needed again.
            num_kept = request.num_prompt_tokens - 1
            return list(self.tables.table(parent.request_id)[: self.tables.num_blocks_for(num_kept)]), num_kept
        shared = self.tables.find_prefix(request)
        return shared, len(shared) * self.tables.block_size

    def _has_room(self, request: Request, shared: Sequence[int], num_kept: int) -> bool:
        if len(self.running) >= self.config.max_num_seqs:
            return False
        # Alone, a request may use the last block; beside others, the watermark lets those grow.
        watermark = self._watermark_blocks if self.running else 0
        needed = self.tables.blocks_to_open(shared, request.num_tokens, num_kept)
        return needed + watermark <= self.tables.pool.num_available

    def _add_chunk(self, request: Request, num_tokens: int, builder: PlanBuilder) -> None:
        start = request.num_computed_tokens
        samples = start + num_tokens == request.num_tokens
        if builder.kind is None:
            builder.kind = request.is_prefill
        builder.chunks.append(Chunk(request_id=request.request_id, start=start, num_tokens=num_tokens, samples=samples))
        builder.scheduled.add(request.request_id)
        builder.budget -= num_tokens

    def _victim(self, builder: PlanBuilder, now_s: float) -> Request:
        candidates = [r for r in self.running if r.request_id not in builder.scheduled]
        return check_victim(self.victims.choose(candidates, self.policy, now_s), candidates, self.victims)

    def _preempt(self, request: Request, builder: PlanBuilder, now_s: float) -> None:
        if not self.swapping.swap_out(request, builder):
            self._lost[request.request_id] = max(request.num_computed_tokens, self._lost.get(request.request_id, 0))
            request.num_computed_tokens = 0
        self._leave(request)
        request.preempted_at_s.append(now_s)
        request.num_preemptions += 1
        self.num_preemptions += 1
        request.status = RequestStatus.WAITING
        self.waiting[request.request_id] = request

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self.tables.close(request.request_id)
        self._released.append(request.request_id)

    # Advance and commit

    def advance(self, plan: StepPlan) -> None:
        """Take what is certain of a plan that was launched, before its result is known: progress, and that each
        sampling chunk gives a token. So the next step can be scheduled while this one runs.

        Every token that the plan computes is known by now: the steps before it were committed.
        """
        for chunk in plan.chunks:
            request = self._requests.get(chunk.request_id)
            if request is None or request.status is not RequestStatus.RUNNING:
                continue
            end = chunk.start + chunk.num_tokens
            self._count_recomputed(request, chunk.start, end)
            request.num_computed_tokens = end
            self.tables.publish(request)
            if chunk.samples:
                request.expect_token()
                if request.is_full:
                    # Its blocks can serve others: what is launched runs before what will be.
                    self._leave(request)
                    request.status = RequestStatus.ENDING
                elif not self.reuse_kv:
                    self._lost[request.request_id] = request.num_computed_tokens
                    request.num_computed_tokens = 0

    def commit(self, plan: StepPlan, result: StepResult, now_s: float) -> Commit:
        """Take the result of a plan that was advanced: tokens, ends. Requests that ended meanwhile are passed over."""
        samples = iter(result.samples)
        emitted: list[tuple[int, tuple[int, ...]]] = []
        finished: list[int] = []
        for chunk in plan.chunks:
            if not chunk.samples:
                continue
            sample = next(samples)
            assert sample.request_id == chunk.request_id, "the runner answered in another order"
            request = self._requests.get(chunk.request_id)
            if request is None:
                continue
            if sample.error is not None:
                # Whatever it published may hold what is no number.
                self.tables.pool.drop_cached()
                self._finish(request, FinishReason.ERROR, now_s, sample.error)
                finished.append(request.request_id)
                continue
            num_before = request.num_tokens - 1
            reason = None
            for token_id in sample.token_ids:
                request.append(token_id, now_s)
                reason = request.stop_reason()
                if reason is not None:
                    break
            token_ids = tuple(request.token_ids[num_before:])
            request.logprobs.extend(sample.logprobs[: len(token_ids)])
            emitted.append((request.request_id, token_ids))
            if chunk.num_draft_tokens:
                self._settle(request, sample, len(token_ids) - 1)
            if reason is not None:
                self._finish(request, reason, now_s, None)
                finished.append(request.request_id)
        return Commit(emitted=tuple(emitted), finished=tuple(finished))

    def _settle(self, request: Request, sample: SampledTokens, num_kept: int) -> None:
        """The K/V of the first `num_kept` drafts is there to stay, and that of the others is nobody's."""
        if sample.num_draft_tokens:
            request.speculated.add(sample.num_draft_tokens, sample.draft_depth, sample.num_accepted_tokens)
        self._count_recomputed(request, request.num_computed_tokens, request.num_computed_tokens + num_kept)
        request.num_computed_tokens += num_kept
        self.tables.publish(request)
        self.tables.trim(request.request_id, request.num_computed_tokens)

    def _count_recomputed(self, request: Request, start: int, end: int) -> None:
        reached = self._lost.get(request.request_id)
        if reached is None:
            return
        again = max(0, min(end, reached) - start)
        request.num_recomputed_tokens += again
        self.num_recomputed_tokens += again
        if end >= reached:
            del self._lost[request.request_id]

    def _finish(self, request: Request, reason: FinishReason, now_s: float, error: str | None) -> None:
        if request.status is RequestStatus.RUNNING:
            self._leave(request)
        elif request.status is RequestStatus.WAITING:
            del self.waiting[request.request_id]
        del self._requests[request.request_id]
        request.drop_pending_token()
        self._lost.pop(request.request_id, None)
        self.swapping.forget(request.request_id)
        self.tables.forget(request.request_id)
        if self.drafting is not None:
            self.drafting.forget(request.request_id)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        request.finish_s = now_s
        request.error = error
        self._finished.append(request)

    def check(self) -> None:
        """Assert every invariant of queues, tables and pool: for tests and for an idle engine."""
        self.tables.check()
        self.swapping.check(self._requests)
        running = {r.request_id for r in self.running}
        assert len(running) == len(self.running) <= self.config.max_num_seqs
        assert not running & set(self.waiting)
        ending = {i for i, request in self._requests.items() if request.status is RequestStatus.ENDING}
        assert not ending & (running | set(self.waiting))
        assert running | set(self.waiting) | ending == set(self._requests), "a request is lost"
        for request in self._requests.values():
            assert (request.request_id in running) == self.tables.holds(request.request_id)
            assert 0 <= request.num_computed_tokens < request.num_tokens
            assert request.request_id not in ending or request.has_pending_token
            if request.request_id in running:
                held = len(self.tables.table(request.request_id)) * self.tables.block_size
                assert request.num_computed_tokens <= held
        if not self._requests:
            assert self.tables.pool.num_used == 0, "blocks are in use, but no request is"
