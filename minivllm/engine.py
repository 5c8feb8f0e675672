"""The loop: schedule, launch, wait, commit. The only place where the host wing and the device wing meet.

With `execution.overlap` a step is waited for only after the next one was scheduled and launched, so that the host's
work is hidden behind the device's. What a token turned out to be is known one step late: a request that ends by its
value (an end token, a stop string) runs one row too many, whose token nobody takes. With speculation steps do not
overlap: where a request stands after a step is known with its tokens.
"""

from __future__ import annotations

import random

from minivllm.blocks.base import EvictionPolicy
from minivllm.blocks.host_slots import HostSlots
from minivllm.blocks.pool import BlockPool
from minivllm.blocks.tables import BlockTables
from minivllm.clock import Clock, WallClock
from minivllm.config import EngineConfig, require
from minivllm.plan import StepPlan, StepReport
from minivllm.request import FinishReason, Request
from minivllm.runner.base import Launched, MemoryReport, Runner
from minivllm.sampling.random import continuation_seed
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler.base import SchedulingPolicy
from minivllm.scheduler.builder import Commit
from minivllm.scheduler.drafting import Drafting, decodes
from minivllm.scheduler.predictors.base import LengthPredictor
from minivllm.scheduler.preemptions.base import PreemptionMode
from minivllm.scheduler.scheduler import Scheduler
from minivllm.scheduler.swapping import Swapping
from minivllm.scheduler.victims.base import VictimPolicy
from minivllm.speculation.lengths.base import DraftLengthPolicy


class Engine:
    """One engine over one runner.

    Args:
        config: its parts.
        runner: the device wing, or a simulation of it.
        clock: where every timestamp comes from.
    """

    def __init__(self, config: EngineConfig, runner: Runner, clock: Clock | None = None) -> None:
        self.config = config
        self.runner = runner
        self.clock = clock or WallClock()
        eviction = config.cache.eviction.make("cache", EvictionPolicy)
        policy = config.scheduler.policy.make("scheduler", SchedulingPolicy)
        mode = config.preemption.mode.make("preemption", PreemptionMode)
        self._pool = BlockPool(runner.num_blocks, eviction)
        self._tables = BlockTables(self._pool, config.cache.block_size, config.cache.prefix_caching)
        drafting, speculation = None, config.speculation
        if speculation.enabled:
            num_drafts = speculation.num_draft_tokens
            require(
                num_drafts < runner.max_model_len - 1,
                "speculation.num_draft_tokens",
                num_drafts,
                f"below {runner.max_model_len - 1}: the context is model.max_model_len={runner.max_model_len}",
            )
            length = speculation.length.make("draft_length", DraftLengthPolicy, num_draft_tokens=num_drafts)
            drafting = Drafting(length, self._tables)
        self.scheduler = Scheduler(
            config.scheduler,
            policy,
            self._tables,
            victims=config.scheduler.victim.make("victim", VictimPolicy),
            swapping=Swapping(mode, HostSlots(runner.num_swap_blocks), self._tables),
            reuse_kv=config.cache.reuse_kv,
            drafting=drafting,
            predictor=config.scheduler.predictor.make("length_predictor", LengthPredictor),
        )
        self._overlap = config.overlaps
        # The step that runs while the next one is made, where steps overlap.
        self._ahead: tuple[StepPlan, Launched] | None = None
        self._next_request_id = 0
        # Seeds of requests that bring none.
        self._seeds = random.Random(config.execution.seed)

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def block_size(self) -> int:
        return self._tables.block_size

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished

    def add_request(
        self,
        prompt_token_ids: list[int],
        sampling_params: SamplingParams,
        *,
        arrival_s: float | None = None,
        priority: int = 0,
        client_id: int = 0,
        predicted_output_tokens: int | None = None,
    ) -> tuple[int, ...]:
        """Queue a prompt.

        Args:
            prompt_token_ids: at least one token of the model's vocabulary.
            sampling_params: `n` of them make n requests that share the prompt's blocks.
            arrival_s: when it was due, on the engine's clock; now where None.
            priority, client_id: for the policies that look at them.
            predicted_output_tokens: what is known of the length; the predictor says it where None.

        Returns:
            The n request ids.

        Raises:
            ValueError: the prompt is empty, has a token out of range, or can never fit.
        """
        longest = self._longest_total(prompt_token_ids, sampling_params)
        seed = self._seeds.getrandbits(63) if sampling_params.seed is None else sampling_params.seed
        arrival_s = self.clock.now_s() if arrival_s is None else arrival_s
        first_id = self._next_request_id
        self._next_request_id += sampling_params.n
        for index in range(sampling_params.n):
            self.scheduler.add(
                Request(
                    request_id=first_id + index,
                    parent_id=first_id if index else None,
                    prompt_token_ids=prompt_token_ids,
                    sampling_params=sampling_params,
                    sampling_seed=continuation_seed(seed, index),
                    arrival_s=arrival_s,
                    max_total_tokens=longest,
                    eos_token_ids=frozenset() if sampling_params.ignore_eos else self.runner.eos_token_ids,
                    priority=priority,
                    client_id=client_id,
                    predicted_output_tokens=predicted_output_tokens,
                )
            )
        return tuple(range(first_id, first_id + sampling_params.n))

    def _longest_total(self, prompt_token_ids: list[int], params: SamplingParams) -> int:
        """Longest sequence this request may become; a ValueError where not even that is possible."""
        num_prompt_tokens = len(prompt_token_ids)
        if num_prompt_tokens == 0:
            raise ValueError("prompt: is empty: give at least one token, such as the model's bos token")
        lowest, highest = min(prompt_token_ids), max(prompt_token_ids)
        if lowest < 0 or highest >= self.runner.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"prompt_token_ids: {wrong} is outside of the vocabulary [0, {self.runner.vocab_size})")
        limit = self.runner.max_model_len
        if num_prompt_tokens >= limit:
            raise ValueError(
                f"prompt: {num_prompt_tokens} tokens leave no room in a context of model.max_model_len={limit}: "
                f"shorten it to {limit - 1} or less"
            )
        longest = min(limit, num_prompt_tokens + params.max_tokens)
        # The last token is sampled, never computed.
        needed = self._tables.num_blocks_for(longest - 1)
        if needed > self.num_blocks:
            raise ValueError(
                f"prompt: {num_prompt_tokens} tokens and max_tokens={params.max_tokens} need {needed} K/V blocks of "
                f"{self.block_size}, the pool has cache.num_blocks={self.num_blocks}: it can never fit; "
                "raise cache.num_blocks or cache.memory_bytes, or lower max_tokens"
            )
        return longest

    def step(self) -> StepReport:
        """Schedule, launch, wait, commit. Where steps overlap, what is waited for and committed is the step before."""
        scheduler, pool = self.scheduler, self._pool
        evictions, preemptions = pool.num_evictions, scheduler.num_preemptions
        recomputed = scheduler.num_recomputed_tokens
        start_s = self.clock.now_s()
        plan = scheduler.schedule(now_s=start_s)
        # A chunk that reaches past the prompt decodes; without a KV cache every chunk starts at 0 and prefills.
        num_decode_tokens = len(plan.decodes) + sum(decodes(chunk) for chunk in plan.others)
        planned_s = self.clock.now_s()
        launched = self.runner.launch(plan)
        if self._overlap:
            due, self._ahead = self._ahead, (plan, launched)
        else:
            due = (plan, launched)
            scheduler.advance(plan)
        result = due[1].wait() if due is not None else None
        ran_s = self.clock.now_s()
        commit = Commit() if due is None or result is None else scheduler.commit(due[0], result, now_s=ran_s)
        if self._overlap:
            scheduler.advance(plan)
        end_s = self.clock.now_s()
        if scheduler.drafting is not None and result is not None:
            scheduler.drafting.observe(plan, result, end_s - start_s)
        drafted = () if result is None else tuple(s for s in result.samples if s.num_draft_tokens)
        return StepReport(
            step=plan.step,
            start_s=start_s,
            duration_s=end_s - start_s,
            schedule_s=planned_s - start_s,
            run_s=ran_s - planned_s,
            commit_s=end_s - ran_s,
            device_s=None if result is None else result.device_s,
            draft_s=None if result is None else result.draft_s,
            verify_s=None if result is None else result.verify_s,
            num_draft_tokens=sum(sample.num_draft_tokens for sample in drafted),
            num_accepted_tokens=sum(sample.num_accepted_tokens for sample in drafted),
            num_verifications=len(drafted),
            num_prefill_tokens=plan.num_tokens - num_decode_tokens,
            num_decode_tokens=num_decode_tokens,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_blocks_used=pool.num_used,
            kv_blocks_cached=pool.num_evictable,
            kv_slots_unused=self._tables.num_slots_unused(scheduler.running),
            num_evictions=pool.num_evictions - evictions,
            num_preemptions=scheduler.num_preemptions - preemptions,
            num_recomputed_tokens=scheduler.num_recomputed_tokens - recomputed,
            num_swapped_blocks=plan.num_swapped_blocks,
            num_compilations=0 if result is None else result.num_compilations,
            idle_until_s=plan.idle_until_s,
            emitted=commit.emitted,
            finished=commit.finished,
        )

    def abort(self, request_id: int) -> None:
        """End a request now; it is handed over like any other. Unknown ids are left alone."""
        self.scheduler.finish(request_id, FinishReason.ABORT, self.clock.now_s())

    def stop(self, request_id: int, num_output_tokens: int) -> None:
        """End a request whose text reached a stop string with one of the tokens of its last step.

        Args:
            request_id: it may have ended by a later token of that step.
            num_output_tokens: those that it keeps.
        """
        self.scheduler.stop(request_id, num_output_tokens, self.clock.now_s())

    def request(self, request_id: int) -> Request | None:
        """An unfinished request, or None."""
        return self.scheduler.get(request_id)

    def take_finished(self) -> list[Request]:
        """Requests that ended since the last call; the engine forgets them."""
        return self.scheduler.take_finished()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes, so that what comes next is measured cold."""
        self._pool.drop_cached()

    def memory(self) -> MemoryReport:
        return self.runner.memory()

    def check(self) -> None:
        """Assert every invariant of the host wing."""
        self.scheduler.check()
