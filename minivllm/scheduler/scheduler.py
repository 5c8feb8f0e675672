"""The mechanism: turns a policy's order into a plan, and a result into tokens, stops and free blocks.

A plan may be scheduled while the one before it still runs: `advance` takes what is certain of it, its tokens excepted.

There is no prefill phase and no decode phase. A request has `num_tokens` known and `num_computed_tokens` in the cache;
a step computes some of the difference, and when it reaches the newest token, one more is sampled.

A victim gives its blocks back and waits, its tokens kept; its K/V is forgotten, or waits in host memory. Preemption
cannot livelock, whoever is chosen: requests are served in the policy's order, victims come only from those not yet
served in this step, one that is left alone fits the pool, and whoever was let in gets a token before it needs a block.

Where all that run get all they want, their order is of no consequence, and a policy that is nothing but a key is not
asked for it: a step of 256 decodes is a few passes over a list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from minivllm.blocks.host_slots import HostSlots
from minivllm.blocks.tables import BlockTables
from minivllm.config import SchedulerConfig
from minivllm.plan import NewRow, StepPlan, StepResult, TableUpdate
from minivllm.request import FinishReason, Request, RequestStatus, RequestView
from minivllm.scheduler.base import SchedulerState, SchedulingPolicy, break_rule, keys_of, overrides, ranked
from minivllm.scheduler.builder import Commit, PlanBuilder
from minivllm.scheduler.drafting import Drafting
from minivllm.scheduler.outcomes import Outcomes
from minivllm.scheduler.predictors.base import LengthPredictor
from minivllm.scheduler.preemptions.recompute import Recompute
from minivllm.scheduler.queues import Queues
from minivllm.scheduler.rules import check_order, check_plan, check_victim, check_wait
from minivllm.scheduler.swapping import Swapping
from minivllm.scheduler.victims.base import VictimPolicy
from minivllm.scheduler.victims.least_deserving import LeastDeserving
from minivllm.scheduler.waiting import WaitingQueue


class Scheduler:
    """One scheduler over one pool.

    Args:
        config: budgets.
        policy: order.
        tables: block tables of running requests.
        victims: chooses who is preempted; the least deserving where None.
        swapping: knows what becomes of a victim's K/V; it is computed again where None.
        reuse_kv: False forgets all K/V after each token (the baseline without a KV cache).
        drafting: hands out drafts; None where nothing is speculated.
        predictor: of output lengths; None leaves what requests come with.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        policy: SchedulingPolicy,
        tables: BlockTables,
        *,
        victims: VictimPolicy | None = None,
        swapping: Swapping | None = None,
        reuse_kv: bool = True,
        drafting: Drafting | None = None,
        predictor: LengthPredictor | None = None,
    ) -> None:
        self.config = config
        self.policy = policy
        self.tables = tables
        self.victims = victims or LeastDeserving()
        self.swapping = swapping or Swapping(Recompute(), HostSlots(0), tables)
        self.reuse_kv = reuse_kv
        self.drafting = drafting
        self._queues = Queues(policy, tables, self.swapping, predictor, drafting)
        self._step = 0
        self._watermark_blocks = math.ceil(config.watermark_fraction * tables.pool.num_blocks)
        self._plans, self._orders = overrides(policy, "plan"), overrides(policy, "order")
        self._waits = overrides(policy, "wait_until_s")
        self._outcomes = Outcomes(self._queues, tables, policy, reuse_kv=reuse_kv)

    # Requests in and out

    @property
    def running(self) -> list[Request]:
        """In order of admission."""
        return self._queues.running

    @property
    def waiting(self) -> WaitingQueue:
        return self._queues.waiting

    @property
    def num_preemptions(self) -> int:
        return self._queues.num_preemptions

    @property
    def num_recomputed_tokens(self) -> int:
        return self._queues.num_recomputed_tokens

    def add(self, request: Request) -> None:
        self._queues.add(request)

    def finish(self, request_id: int, reason: FinishReason, now_s: float, error: str | None = None) -> None:
        """End a request from outside the step: an abort, or a stop string. Unknown and ended ones are left alone."""
        request = self.get(request_id)
        if request is not None:
            self._queues.finish(request, reason, now_s, error)

    def stop(self, request_id: int, num_output_tokens: int, now_s: float) -> None:
        """End a request behind one of its last step's tokens, though it may have ended by a later one."""
        self.finish(request_id, FinishReason.STOP, now_s)
        request = self._queues.finished(request_id)
        if request is not None:
            request.cut(num_output_tokens)
            request.finish_reason = FinishReason.STOP

    def take_finished(self) -> list[Request]:
        """Hand over the requests that ended since the last call."""
        return self._queues.take_finished()

    @property
    def has_unfinished(self) -> bool:
        return bool(self._queues.requests)

    def get(self, request_id: int) -> Request | None:
        return self._queues.requests.get(request_id)

    # Schedule

    def schedule(self, now_s: float) -> StepPlan:
        """Decide the next step and take the blocks that it needs.

        Raises:
            PolicyError: the policy breaks a rule. Queues and blocks stay consistent.
        """
        builder = PlanBuilder(self.config.max_num_batched_tokens)
        self._queues.refine_predictions()
        idle_until_s = self._idle_until_s(now_s) if self._waits else None
        if idle_until_s is None:
            self._fill(builder, now_s)
            if self.drafting is not None:
                self.drafting.hand_out(builder, self._queues.requests)
            if builder.is_empty:
                self._check_progress()
        self.swapping.settle()
        self._step += 1
        return builder.plan(self._step, self._queues.take_released(), idle_until_s)

    def _idle_until_s(self, now_s: float) -> float | None:
        if not self.has_unfinished or any(r.has_pending_token for r in self._queues.requests.values()):
            return None
        until_s = self.policy.wait_until_s(self._state(now_s), now_s)
        return None if until_s is None else check_wait(until_s, self.policy, now_s)

    def _check_progress(self) -> None:
        requests = self._queues.requests
        if requests and not any(request.has_pending_token for request in requests.values()):
            break_rule(self.policy, "progress", f"nothing is scheduled while {len(requests)} requests are unfinished")

    def _state(self, now_s: float) -> SchedulerState:
        return SchedulerState(
            running=tuple(self.running),
            waiting=self.waiting,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            num_available_blocks=self.tables.pool.num_available,
            num_blocks=self.tables.pool.num_blocks,
            block_size=self.tables.block_size,
            ranked_waiting=lambda: self.waiting.first(self.config.max_num_seqs, now_s),
            num_cached_tokens=self._num_cached_tokens,
        )

    def _num_cached_tokens(self, request: RequestView) -> int:
        own = self.get(request.request_id)
        return 0 if own is None or own.has_pending_token else len(self.tables.find_prefix(own)) * self.tables.block_size

    def _fill(self, builder: PlanBuilder, now_s: float) -> None:
        """Everyone gets a share, in the policy's order."""
        policy, requests = self.policy, self._queues.requests
        if self._plans:
            for request, num_tokens in check_plan(
                policy.plan(self._state(now_s), now_s), requests, policy, self.config
            ):
                self._give(requests[request.request_id], num_tokens, builder, now_s)
        elif self._orders:
            for request in check_order(policy.order(self._state(now_s), now_s), requests, policy):
                self._give(request, None, builder, now_s)
        elif policy.mixed_steps and not self._is_outranked(now_s) and self._serve_everyone(builder):
            self._let_in(builder, now_s)
        elif policy.preemptive:
            waiting = self.waiting.first(self.config.max_num_seqs, now_s)
            for request in ranked(policy, [*self.running, *waiting], now_s):
                self._give(request, None, builder, now_s)
        else:
            for request in ranked(policy, self.running, now_s):
                self._give(request, None, builder, now_s)
            self._let_in(builder, now_s)

    def _is_outranked(self, now_s: float) -> bool:
        """A waiting request comes before a running one."""
        if not self.policy.preemptive or not self.waiting or not self.running:
            return False
        first = keys_of(self.policy, self.waiting.first(1, now_s), now_s)
        return first[0] < max(keys_of(self.policy, self.running, now_s))

    def _serve_everyone(self, builder: PlanBuilder) -> bool:
        """Give all that run all they want, if tokens and blocks allow it."""
        running, tables = self.running, self.tables
        prefilling = [r for r in running if r.num_tokens - r.num_computed_tokens != 1]
        decoding = running
        if prefilling:
            decoding = [r for r in running if r.num_tokens - r.num_computed_tokens == 1]
        wanted = len(decoding) + sum([r.num_tokens - r.num_computed_tokens for r in prefilling])
        if wanted > builder.budget:
            return False
        # A decode takes a block where its token is the first of one.
        size = tables.block_size
        growing = prefilling + [r for r in decoding if not r.num_computed_tokens % size]
        needed = sum(tables.blocks_to_grow(request.request_id, request.num_tokens) for request in growing)
        if needed > tables.pool.num_available:
            return False
        for request in growing:
            self._grow(request, request.num_tokens, builder)
        for request in prefilling:
            builder.add_chunk(request, request.num_tokens - request.num_computed_tokens)
        builder.add_decodes(decoding)
        return True

    def _let_in(self, builder: PlanBuilder, now_s: float) -> None:
        """Waiting requests take what seats, blocks and tokens are left."""
        if builder.budget < 1 or len(self.running) >= self.config.max_num_seqs:
            return
        for request in self.waiting.first(self.config.max_num_seqs, now_s):
            if builder.closed:
                return
            self._give(request, None, builder, now_s)

    def _give(self, request: Request, wanted: int | None, builder: PlanBuilder, now_s: float) -> None:
        if request.request_id in builder.scheduled:
            # Let in for one of its siblings.
            return
        if request.status is RequestStatus.RUNNING:
            self._serve(request, wanted, builder, now_s)
        elif not builder.closed:
            self._admit(request, wanted, builder, now_s)

    def _chunk_size(self, remaining: int, wanted: int | None, builder: PlanBuilder) -> int:
        """Tokens to run now; 0 where the budget does not allow it."""
        if not self.config.chunked_prefill and remaining > builder.budget:
            # A prompt beyond the whole budget runs in one step, alone.
            alone = builder.is_empty and remaining > self.config.max_num_batched_tokens
            return remaining if alone else 0
        return min(remaining, builder.budget, remaining if wanted is None else wanted)

    def _fits_kind(self, request: Request, builder: PlanBuilder) -> bool:
        return self.policy.mixed_steps or builder.kind is None or builder.kind == request.is_prefill

    def _serve(self, request: Request, wanted: int | None, builder: PlanBuilder, now_s: float) -> None:
        """Give a running request its next tokens; preempt where there is no block for them."""
        if not self._fits_kind(request, builder):
            return
        remaining = request.num_tokens - request.num_computed_tokens
        num_tokens = self._chunk_size(remaining, wanted, builder)
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
            self._grow(request, end, builder)
        if remaining == 1:
            builder.add_decodes([request])
        else:
            builder.add_chunk(request, num_tokens)

    def _grow(self, request: Request, num_tokens: int, builder: PlanBuilder) -> None:
        first = len(self.tables.table(request.request_id))
        block_ids = self.tables.grow(request.request_id, num_tokens)
        if block_ids:
            builder.updates.append(TableUpdate(request_id=request.request_id, first=first, block_ids=block_ids))

    def _admit(self, request: Request, wanted: int | None, builder: PlanBuilder, now_s: float) -> None:
        """Let a waiting request in: a seat, and blocks for all of its known tokens, so that a chunked prefill that
        has begun never waits for memory."""
        if not self._fits_kind(request, builder):
            return
        if request.has_pending_token or request.request_id in builder.preempted:
            # Preempted a moment ago: a row is made of known tokens only, and K/V that leaves cannot come back yet.
            builder.closed = True
            return
        parent = self.get(request.parent_id) if request.parent_id is not None and self.reuse_kv else None
        if parent is not None and parent.status is RequestStatus.ENDING:
            # It holds nothing any more.
            parent = None
        if parent is not None and parent.status is RequestStatus.WAITING:
            # The prompt that siblings share is computed, or comes back from host memory, with the first of them.
            return self._admit(parent, wanted, builder, now_s)
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
        if request.first_scheduled_s is None:
            # What the cache gave; blocks of a sibling are no hit.
            request.num_cached_tokens = num_kept if parent is None else 0
        self._queues.admit(request, start, now_s)
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
        builder.add_chunk(request, num_tokens)

    def _must_wait(self, parent: Request, request: Request, builder: PlanBuilder) -> bool:
        """Whether the prompt that siblings share is on its way still: from host memory, or being computed."""
        return parent.request_id in builder.swapped_in or parent.num_computed_tokens < request.num_prompt_tokens

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

    def _victim(self, builder: PlanBuilder, now_s: float) -> Request:
        candidates = [r for r in self.running if r.request_id not in builder.scheduled]
        return check_victim(self.victims.choose(candidates, self.policy, now_s), candidates, self.victims)

    def _preempt(self, request: Request, builder: PlanBuilder, now_s: float) -> None:
        self._queues.preempt(request, now_s, is_swapped=self.swapping.swap_out(request, builder))
        builder.preempted.add(request.request_id)

    # Advance and commit

    def advance(self, plan: StepPlan) -> None:
        """Take what is certain of a plan that was launched, before its result is known: progress, and that each
        sampling chunk gives a token. So the next step can be scheduled while this one runs.

        Every token that the plan computes is known by now: the steps before it were committed.
        """
        self._outcomes.advance(plan)

    def commit(self, plan: StepPlan, result: StepResult, now_s: float) -> Commit:
        """Take the result of a plan that was advanced: tokens, ends. Requests that ended meanwhile are passed over."""
        return self._outcomes.commit(plan, result, now_s)

    def check(self) -> None:
        """Assert every invariant of queues, tables and pool: for tests and for an idle engine."""
        self._queues.check()
        assert len(self.running) <= self.config.max_num_seqs
