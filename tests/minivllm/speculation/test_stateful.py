"""Drafts under random operations: accepted and rejected, stopped within an emission, preempted, forked and aborted, in
pools of any tightness. Every K/V that is read, by the target or by its drafter, is of the reader's own history; no
block leaks; and what the prefix cache holds is text that the target wrote."""

from __future__ import annotations

from collections import Counter
from functools import partial

import hypothesis.strategies as st
from draft_targets import LENGTHS
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from speculating import TickingClock, dice
from symbolic import EOS, continuation, history_hash, make_engine
from symbolic_drafts import TREES, DraftingRunner

from minivllm.blocks.prefix import extend_keys
from minivllm.config import Component, PreemptionConfig, SpeculationConfig
from minivllm.request import FinishReason, Request
from minivllm.sampling.random import continuation_seed
from minivllm.sampling_params import SamplingParams

MIN_OPERATIONS = 50_000
_LONGEST = 24
_reached: Counter[str] = Counter()


class SpeculationMachine(RuleBasedStateMachine):
    """Requests that share prompts, steps that draft, aborts and stops over a drawn engine."""

    @initialize(data=st.data())
    def build(self, data) -> None:
        self.block_size = data.draw(st.sampled_from([1, 2, 4, 8]))
        longest = -(-_LONGEST // self.block_size)
        runner = partial(
            DraftingRunner,
            percent_right=data.draw(st.sampled_from([10, 60, 90, 100])),
            percent_short=25,
            tree=data.draw(st.sampled_from(TREES)),
        )
        num_swap_blocks = data.draw(st.sampled_from([0, 1, longest, 5 * longest]))
        self.engine = make_engine(
            num_blocks=longest + data.draw(st.integers(0, longest)),
            block_size=self.block_size,
            policy=data.draw(
                st.sampled_from(["fcfs.FCFS", "static.StaticBatching", "srpt.ShortestRemaining", "reverse.Reverse"])
            ),
            eviction=data.draw(st.sampled_from(["lru.LRU", "fifo.FIFO", "lfu.LFU"])),
            prefix_caching=data.draw(st.sampled_from([True, True, False])),
            max_num_seqs=data.draw(st.integers(1, 5)),
            max_num_batched_tokens=data.draw(st.integers(1, 24)),
            chunked_prefill=data.draw(st.booleans()),
            watermark_fraction=data.draw(st.sampled_from([0.0, 0.1])),
            max_model_len=_LONGEST + 1,
            speculation=SpeculationConfig(
                drafter=Component(target="speculating.Garbage"),
                num_draft_tokens=data.draw(st.integers(1, 8)),
                length=LENGTHS[data.draw(st.sampled_from(sorted(LENGTHS)))],
            ),
            preemption=PreemptionConfig.named("swap", num_swap_blocks=num_swap_blocks) if num_swap_blocks else None,
            make_runner=runner,
            clock=TickingClock(),
        )
        self.open: dict[int, list[int]] = {}
        self.stopped: dict[int, int] = {}
        # Of every text that the target writes: what a full block of it holds, by its key.
        self.written: dict[bytes, tuple[bytes, ...]] = {}

    @rule(
        bits=st.sampled_from([0b0, 0b1, 0b10, 0b1101]),
        length=st.integers(1, 14),
        max_tokens=st.sampled_from([1, 2, 5, 8, 10]),
        n=st.sampled_from([1, 1, 2, 3]),
        burst=st.integers(1, 6),
        ignore_eos=st.booleans(),
        seed=st.integers(0, 1),
    )
    def add(self, bits, length, max_tokens, n, burst, ignore_eos, seed) -> None:
        params = SamplingParams(max_tokens=max_tokens, n=n, ignore_eos=ignore_eos, seed=seed)
        for shorter in range(min(burst, length)):
            prompt = [bits >> (i % 4) & 1 for i in range(length - shorter)]
            total = min(len(prompt) + max_tokens, _LONGEST + 1)
            for index, request_id in enumerate(self.engine.add_request(prompt, params)):
                wanted = continuation(
                    prompt, continuation_seed(seed, index), total, frozenset() if ignore_eos else frozenset({EOS})
                )
                self.open[request_id] = wanted
                self._write_down([*prompt, *wanted])
                _reached["operations"] += 1

    @precondition(lambda self: self.engine.has_unfinished)
    @rule(count=st.integers(1, 24), stops=st.booleans())
    def step(self, count, stops) -> None:
        for _ in range(count):
            if self.engine.has_unfinished:
                self._step(stops)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data) -> None:
        self.engine.abort(data.draw(st.sampled_from(sorted(self.open))))
        _reached["operations"] += 1
        self._check()

    # Rarely: a cache that is always cold tests nothing.
    @rule(side=st.integers(1, 6))
    def reset_prefix_cache(self, side) -> None:
        if side == 6:
            self.engine.reset_prefix_cache()
            _reached["operations"] += 1
            self._check()

    def _step(self, stops: bool) -> None:
        report = self.engine.step()
        drafts = report.num_draft_tokens
        _reached["operations"] += 1
        _reached["accepted"] += report.num_accepted_tokens
        _reached["rejected"] += drafts - report.num_accepted_tokens
        _reached["preemptions beside drafts"] += report.num_preemptions if drafts else 0
        _reached["evictions beside drafts"] += report.num_evictions if drafts else 0
        _reached["prefills beside drafts"] += bool(drafts and report.num_prefill_tokens)
        for request_id, tokens in report.emitted:
            if stops and len(tokens) > 1 and dice(3, report.step, request_id) == 0:
                self._stop(request_id, tokens)
        self._check()

    def _stop(self, request_id: int, tokens: tuple[int, ...]) -> None:
        """A stop string ends the request with one of the tokens that it has just got, though more came with it."""
        request = self.engine.request(request_id)
        wanted = self.open[request_id]
        num_output = len(wanted) if request is None else request.num_output_tokens
        kept = num_output - dice(len(tokens), request_id, 1)
        self.engine.stop(request_id, kept)
        self.stopped[request_id] = kept
        _reached["stops within an emission"] += kept < num_output
        _reached["stops of requests that had ended"] += request is None

    def _check(self) -> None:
        self.engine.check()
        for request in self.engine.take_finished():
            self._check_finished(request)
        pool, runner, size = self.engine.scheduler.tables.pool, self.engine.runner, self.block_size
        num_found = 0
        for key, histories in self.written.items():
            block_id = pool.lookup(key)
            if block_id is not None:
                num_found += 1
                held = runner.slots[block_id * size : (block_id + 1) * size]
                assert tuple(held) == histories, "the prefix cache holds what the target did not write"
        num_published = sum(pool.is_published(block_id) for block_id in range(pool.num_blocks))
        assert num_found == num_published, "a key of no text of the target is in the prefix cache"

    def _check_finished(self, request: Request) -> None:
        wanted = self.open.pop(request.request_id)
        kept = self.stopped.pop(request.request_id, None)
        got = request.output_token_ids
        _reached["hits"] += request.num_cached_tokens
        _reached["finished"] += 1
        if kept is not None:
            assert request.finish_reason is FinishReason.STOP and got == wanted[:kept]
        elif request.finish_reason is FinishReason.ABORT:
            assert got == wanted[: len(got)]
        else:
            assert got == wanted
        assert len(request.token_times_s) == len(got)
        verifications = self.engine.runner.verifications.pop(request.request_id, [])
        speculated = request.speculated
        assert speculated.num_verifications == len(verifications)
        assert speculated.num_draft_tokens == sum(drafts for drafts, _, _ in verifications)
        assert speculated.num_accepted_tokens == sum(accepted for _, _, accepted in verifications)
        deepest = max((depth for _, depth, _ in verifications), default=0)
        for i in range(deepest):
            reaching = [accepted for _, depth, accepted in verifications if depth > i]
            assert speculated.proposed[i] == len(reaching)
            assert speculated.evaluated[i] == sum(accepted >= i for accepted in reaching)
            assert speculated.accepted[i] == sum(accepted > i for accepted in reaching)
            assert i == 0 or speculated.evaluated[i] <= speculated.accepted[i - 1]
        assert len(speculated.proposed) == len(speculated.evaluated) == len(speculated.accepted) == deepest

    def _write_down(self, token_ids: list[int]) -> None:
        keys: list[bytes] = []
        extend_keys(keys, token_ids, len(token_ids), self.block_size)
        histories = [b""]
        for token_id in token_ids:
            histories.append(history_hash(histories[-1], token_id))
        for index, key in enumerate(keys):
            start = 1 + index * self.block_size
            self.written[key] = tuple(histories[start : start + self.block_size])

    def teardown(self) -> None:
        """Every request ends, whatever the pressure, and nothing leaks."""
        if not hasattr(self, "engine"):
            return
        for _ in range(5000):
            if not self.engine.has_unfinished:
                break
            self._step(False)
        assert not self.engine.has_unfinished and not self.open
        _reached["copies"] += self.engine.runner.num_copies
        _reached["swaps"] += self.engine.runner.num_swaps_in
        _reached["read by drafters"] += self.engine.runner.num_read_by_drafter
        self.engine.reset_prefix_cache()
        self.engine.check()
        pool = self.engine.scheduler.tables.pool
        assert pool.num_available == pool.num_blocks


def test_drafts_survive_random_operations_under_any_pressure() -> None:
    run_state_machine_as_test(
        SpeculationMachine,
        settings=settings(
            max_examples=460,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(_reached))
    assert _reached["operations"] >= MIN_OPERATIONS, _reached
    assert all(_reached.values()), f"a mechanism was never reached: {_reached}"
