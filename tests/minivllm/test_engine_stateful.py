"""The host wing under random operations: block pool, prefix index, tables, scheduler and engine against a runner that
asserts every read."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from policies import POLICIES, PREDICTORS
from symbolic import EOS, VOCAB_SIZE, continuation, make_engine

from minivllm.clock import VirtualClock
from minivllm.config import PreemptionConfig
from minivllm.request import FinishReason
from minivllm.sampling.random import continuation_seed
from minivllm.sampling_params import SamplingParams

MIN_OPERATIONS = 100_000
VICTIMS = (
    "least_deserving.LeastDeserving",
    "newest.Newest",
    "oldest.Oldest",
    "largest.Largest",
    "smallest.Smallest",
    "most_remaining.MostRemaining",
)
# What became of K/V that was swapped out: it came back, it was cached when its request came back, its request ended.
_operations = dict.fromkeys(
    ("total", "preemptions", "evictions", "copies", "hits", "finished", "swaps_out", "swaps_in", "fallbacks",
     "saved_by_cache", "ended_in_host_memory"),
    0,
)  # fmt: skip


class EngineMachine(RuleBasedStateMachine):
    """Random requests, steps, aborts and cache resets over a random configuration, the tightest pools included."""

    @initialize(data=st.data())
    def build(self, data) -> None:
        block_size = data.draw(st.sampled_from([1, 2, 4, 8]))
        reuse_kv = data.draw(st.sampled_from([True, True, True, False]))
        self.clock = VirtualClock()
        policy = data.draw(st.sampled_from(sorted(POLICIES)))
        predictor = data.draw(st.sampled_from(sorted(PREDICTORS)))
        # From a pool that holds exactly one of the longest requests to one that holds several.
        longest = -(-self._longest // block_size)
        # From host memory for a block to room for all.
        num_swap_blocks = data.draw(st.sampled_from([1, longest, 5 * longest])) if data.draw(st.booleans()) else None
        swaps = reuse_kv and num_swap_blocks is not None
        self.engine = make_engine(
            num_blocks=longest + data.draw(st.integers(0, longest)),
            block_size=block_size,
            policy=policy,
            policy_kwargs=POLICIES[policy],
            predictor=predictor,
            predictor_kwargs=PREDICTORS[predictor],
            eviction=data.draw(st.sampled_from(["lru.LRU", "fifo.FIFO", "lfu.LFU"])),
            prefix_caching=reuse_kv and data.draw(st.booleans()),
            reuse_kv=reuse_kv,
            max_num_seqs=data.draw(st.integers(1, 5)),
            max_num_batched_tokens=data.draw(st.integers(1, 24)),
            chunked_prefill=data.draw(st.booleans()),
            watermark_fraction=data.draw(st.sampled_from([0.0, 0.1])),
            max_model_len=self._longest + 1,
            overlap=data.draw(st.booleans()),
            clock=self.clock,
            victim=data.draw(st.sampled_from(VICTIMS)),
            preemption=PreemptionConfig.named("swap", num_swap_blocks=num_swap_blocks) if swaps else None,
        )
        self.open: dict[int, tuple[list[int], SamplingParams, int]] = {}

    _longest = 24

    @rule(
        # Few distinct prompts, long enough to press, so that prefixes are shared and pools run out.
        bits=st.sampled_from([0b0, 0b1, 0b10, 0b1101]),
        length=st.integers(1, 14),
        max_tokens=st.sampled_from([1, 2, 5, 8, 10]),
        n=st.sampled_from([1, 1, 2, 3]),
        burst=st.integers(1, 4),
        ignore_eos=st.booleans(),
        seed=st.integers(0, 1),
        client_id=st.integers(0, 2),
    )
    def add(self, bits, length, max_tokens, n, burst, ignore_eos, seed, client_id) -> None:
        params = SamplingParams(max_tokens=max_tokens, n=n, ignore_eos=ignore_eos, seed=seed)
        for shorter in range(min(burst, length)):
            prompt = [bits >> (i % 4) & 1 for i in range(length - shorter)]
            for index, request_id in enumerate(self._arrive(prompt, params, client_id)):
                self.open[request_id] = (prompt, params, continuation_seed(seed, index))
                _operations["total"] += 1

    def _arrive(self, prompt, params, client_id) -> tuple[int, ...]:
        return self.engine.add_request(prompt, params, client_id=client_id, priority=client_id % 2)

    def _step(self):
        self.clock.advance(0.004)
        return self.engine.step()

    @precondition(lambda self: self.engine.has_unfinished)
    @rule(count=st.integers(1, 12))
    def step(self, count) -> None:
        for _ in range(count):
            if not self.engine.has_unfinished:
                break
            report = self._step()
            _operations["total"] += 1
            _operations["preemptions"] += report.num_preemptions
            _operations["evictions"] += report.num_evictions
            self.engine.check()
            self._collect()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.open)))
        self.engine.abort(request_id)
        _operations["total"] += 1
        self._collect()

    # Rarely: a cache that is always cold tests nothing.
    @rule(dice=st.integers(1, 6))
    def reset_prefix_cache(self, dice) -> None:
        if dice == 6:
            self.engine.reset_prefix_cache()
            _operations["total"] += 1

    def _collect(self) -> None:
        for request in self.engine.take_finished():
            prompt, params, seed = self.open.pop(request.request_id)
            eos = frozenset() if params.ignore_eos else frozenset({EOS})
            total = min(len(prompt) + params.max_tokens, self._longest + 1)
            wanted = continuation(prompt, seed, total, eos)
            got = request.output_token_ids
            _operations["hits"] += request.num_cached_tokens
            _operations["finished"] += 1
            _operations["ended_in_host_memory"] += len(request.resumed_at_s) < len(request.preempted_at_s)
            self._check_timeline(request)
            if request.finish_reason is FinishReason.ABORT:
                assert got == wanted[: len(got)]
            else:
                assert got == wanted

    def _check_timeline(self, request) -> None:
        """Preempted, resumed, preempted, ..., and no more than that."""
        at_s, back_s = request.preempted_at_s, request.resumed_at_s
        assert len(at_s) == request.num_preemptions and len(at_s) - 1 <= len(back_s) <= len(at_s)
        ended_waiting = len(back_s) < len(at_s)
        assert not ended_waiting or request.finish_reason in (FinishReason.ABORT, FinishReason.STOP)
        instants = [request.arrival_s, *(t for pair in zip(at_s, back_s, strict=False) for t in pair), request.finish_s]
        assert instants == sorted(instants)

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def teardown(self) -> None:
        """Every request that was not aborted ends, whatever the pressure, and nothing leaks."""
        if not hasattr(self, "engine"):
            return
        for _ in range(5000):
            if not self.engine.has_unfinished:
                break
            self._step()
            self.engine.check()
            _operations["total"] += 1
            self._collect()
        assert not self.engine.has_unfinished and not self.open
        runner, swapping = self.engine.runner, self.engine.scheduler.swapping
        _operations["copies"] += runner.num_copies
        _operations["swaps_out"] += runner.num_swaps_out
        _operations["swaps_in"] += runner.num_swaps_in
        _operations["saved_by_cache"] += runner.num_swaps_out - runner.num_swaps_in
        _operations["fallbacks"] += swapping.num_fallbacks
        self.engine.reset_prefix_cache()
        self.engine.check()
        pool = self.engine.scheduler.tables.pool
        assert pool.num_available == pool.num_blocks


def test_engine_survives_random_operations_under_any_pressure() -> None:
    assert VOCAB_SIZE > EOS
    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=800,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),
        ),
    )
    print(_operations)
    assert _operations["total"] >= MIN_OPERATIONS, _operations
    assert all(_operations.values()), f"a mechanism was never reached: {_operations}"
