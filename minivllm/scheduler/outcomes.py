"""What becomes of plans: progress when one is launched, tokens and ends when its result is known."""

from __future__ import annotations

from minivllm.blocks.tables import BlockTables
from minivllm.plan import SampledTokens, StepPlan, StepResult
from minivllm.request import FinishReason, Request, RequestStatus
from minivllm.scheduler.base import SchedulingPolicy, Served, overrides
from minivllm.scheduler.builder import Commit
from minivllm.scheduler.drafting import decodes
from minivllm.scheduler.queues import Queues


class Outcomes:
    """Of one scheduler; see its `advance` and `commit`.

    Args:
        queues, tables: the scheduler's.
        policy: hears who got what.
        reuse_kv: False forgets all K/V after each token.
    """

    def __init__(self, queues: Queues, tables: BlockTables, policy: SchedulingPolicy, *, reuse_kv: bool) -> None:
        self._queues, self._tables, self._policy, self._reuse_kv = queues, tables, policy, reuse_kv
        self._hears = overrides(policy, "on_served")

    def advance(self, plan: StepPlan) -> None:
        """Take what is certain of a plan that was launched, before its result is known: progress, and that each
        sampling chunk gives a token. So the next step can be scheduled while this one runs.

        Every token that the plan computes is known by now: the steps before it were committed.
        """
        queues, tables = self._queues, self._tables
        requests, size = queues.requests, tables.block_size
        full = []
        for request_id in plan.decodes:
            request = requests.get(request_id)
            if request is None or request.status is not RequestStatus.RUNNING:
                continue
            # As `queues.computed` and `expect_token` below, for the newest token alone, which was never lost.
            num_tokens = request.num_computed_tokens = request.num_tokens
            request.num_tokens = num_tokens + 1
            if not num_tokens % size:
                tables.publish(request)
            if num_tokens + 1 >= request.max_total_tokens:
                full.append(request)
        for chunk in plan.others:
            request = requests.get(chunk.request_id)
            if request is None or request.status is not RequestStatus.RUNNING:
                continue
            queues.computed(request, chunk.start + chunk.num_tokens)
            if chunk.samples:
                request.expect_token()
                if request.is_full:
                    full.append(request)
                elif not self._reuse_kv:
                    queues.lose(request)
        for request in full:
            queues.end(request)

    def commit(self, plan: StepPlan, result: StepResult, now_s: float) -> Commit:
        """Take the result of a plan that was advanced: tokens, ends. Requests that ended meanwhile are passed over."""
        requests = self._queues.requests
        # Before anyone ends.
        served = self._served(plan, result) if self._hears else None
        emitted: list[tuple[int, tuple[int, ...]]] = []
        ended: list[tuple[Request, FinishReason]] = []
        if result.decoded is not None:
            found = [requests.get(request_id) for request_id in plan.decodes]
            emitted = list(zip(plan.decodes, zip(result.decoded, strict=True), strict=True))
            if None in found:
                emitted = [each for each, request in zip(emitted, found, strict=True) if request is not None]
            for request, token_id in zip(found, result.decoded, strict=True):
                if request is None:
                    continue
                # As `append`, for a token that was expected.
                request.token_ids.append(token_id)
                request.token_times_s.append(now_s)
                if token_id in request.stop_token_ids:
                    ended.append((request, FinishReason.STOP))
                elif request.num_tokens >= request.max_total_tokens:
                    ended.append((request, FinishReason.LENGTH))
        chunks = plan.chunks if result.decoded is None else plan.others
        failed: list[tuple[Request, str]] = []
        for chunk, sample in zip([chunk for chunk in chunks if chunk.samples], result.samples, strict=True):
            assert sample.request_id == chunk.request_id, "the runner answered in another order"
            request = requests.get(chunk.request_id)
            if request is None:
                continue
            if sample.error is not None:
                failed.append((request, sample.error))
                continue
            num_before = len(request.token_ids)
            reason = None
            for token_id in sample.token_ids:
                request.append(token_id, now_s)
                reason = request.stop_reason()
                if reason is not None:
                    ended.append((request, reason))
                    break
            token_ids = tuple(request.token_ids[num_before:])
            request.logprobs.extend(sample.logprobs[: len(token_ids)])
            emitted.append((request.request_id, token_ids))
            if chunk.num_draft_tokens:
                self._settle(request, sample, len(token_ids) - 1)
        if failed:
            # Whatever they published may hold what is no number.
            self._tables.pool.drop_cached()
        for request, error in failed:
            self._queues.finish(request, FinishReason.ERROR, now_s, error)
        for request, reason in ended:
            self._queues.finish(request, reason, now_s)
        if served is not None:
            self._policy.on_served(served, now_s)
        finished = [request for request, _ in (*failed, *ended)]
        return Commit(emitted=tuple(emitted), finished=tuple(request.request_id for request in finished))

    def _served(self, plan: StepPlan, result: StepResult) -> list[Served]:
        requests = self._queues.requests
        num_new = {sample.request_id: len(sample.token_ids) for sample in result.samples}
        served = [Served(requests[i], 0, num_new.get(i, 1)) for i in plan.decodes if i in requests]
        for chunk in plan.others:
            request = requests.get(chunk.request_id)
            if request is not None:
                num_prefill_tokens = 0 if decodes(chunk) else chunk.num_tokens
                served.append(Served(request, num_prefill_tokens, num_new.get(chunk.request_id, 0)))
        return served

    def _settle(self, request: Request, sample: SampledTokens, num_kept: int) -> None:
        """The K/V of the first `num_kept` drafts is there to stay, and that of the others is nobody's."""
        if sample.num_draft_tokens:
            request.speculated.add(sample.num_draft_tokens, sample.draft_depth, sample.num_accepted_tokens)
        self._queues.computed(request, request.num_computed_tokens + num_kept)
        self._tables.trim(request.request_id, request.num_computed_tokens)
