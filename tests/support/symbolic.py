"""A runner whose K/V are symbols: each slot remembers which tokens, up to and including its own, it was computed from.

It stands for the device wing in tests of the host wing, and it is stricter than any device: reading a slot that holds
another history than the request's own is an assertion, not a wrong logit somewhere. Its next token is a function of
the whole history, so a lost or doubled token changes everything after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from minivllm.clock import Clock
from minivllm.config import (
    CacheConfig,
    Component,
    EngineConfig,
    ExecutionConfig,
    ModelConfig,
    PreemptionConfig,
    SchedulerConfig,
    SpeculationConfig,
)
from minivllm.engine import Engine
from minivllm.plan import SampledTokens, StepPlan, StepResult
from minivllm.runner.base import Done, MemoryReport, Runner

VOCAB_SIZE = 5
EOS = 4


@lru_cache(maxsize=1 << 17)
def history_hash(parent: bytes, token_id: int) -> bytes:
    return blake2b(parent + bytes([token_id]), digest_size=8).digest()


@lru_cache(maxsize=1 << 17)
def next_token(history: bytes, seed: int) -> int:
    return blake2b(history + seed.to_bytes(8, "little"), digest_size=2).digest()[0] % VOCAB_SIZE


def continuation(prompt: list[int], seed: int, max_total: int, eos: frozenset[int]) -> list[int]:
    """What a request must produce, from the definition."""
    history = b""
    for token_id in prompt:
        history = history_hash(history, token_id)
    output: list[int] = []
    while len(prompt) + len(output) < max_total:
        output.append(next_token(history, seed))
        if output[-1] in eos:
            break
        history = history_hash(history, output[-1])
    return output


class SymbolicRunner:
    vocab_size = VOCAB_SIZE
    eos_token_ids = frozenset({EOS})

    def __init__(self, num_blocks: int, block_size: int, max_model_len: int = 64, num_swap_blocks: int = 0) -> None:
        self.num_blocks = num_blocks
        self.num_swap_blocks = num_swap_blocks
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.slots: list[bytes | None] = [None] * (num_blocks * block_size)
        # What lies in host memory: a block's slots each.
        self.host: dict[int, list[bytes | None]] = {}
        self.rows: dict[int, list[int]] = {}
        self.tables: dict[int, list[int]] = {}
        self.seeds: dict[int, int] = {}
        self.num_computed_tokens = 0
        self.num_copies = 0
        self.num_swaps_out = self.num_swaps_in = 0

    def launch(self, plan: StepPlan) -> Done:
        """The row keeps the token at once, as a device does; the host gets it when it waits."""
        return Done(result=self._run(plan))

    def _run(self, plan: StepPlan) -> StepResult:
        self._apply(plan)
        # All writes of a step land before any read: a block written by two requests would show.
        histories = {chunk.request_id: self._write(chunk) for chunk in plan.chunks}
        samples: list[SampledTokens] = []
        for chunk in plan.chunks:
            self._read(chunk.request_id, chunk.start + chunk.num_tokens)
            if chunk.samples:
                token_id = next_token(histories[chunk.request_id], self.seeds[chunk.request_id])
                self.rows[chunk.request_id].append(token_id)
                samples.append(SampledTokens(request_id=chunk.request_id, token_ids=(token_id,)))
        # Both forms of an answer, in turn.
        if plan.step % 2:
            return StepResult(samples=tuple(samples))
        num_decodes = len(plan.decodes)
        decoded = tuple(token_id for sample in samples[:num_decodes] for token_id in sample.token_ids)
        return StepResult(samples=tuple(samples[num_decodes:]), decoded=decoded)

    def _apply(self, plan: StepPlan) -> None:
        for request_id in plan.released:
            if request_id in self.rows:
                del self.rows[request_id], self.tables[request_id]
        for new in plan.new_rows:
            assert new.request_id not in self.rows
            assert min(new.token_ids) >= 0, "a row of a token that is not known"
            self.rows[new.request_id] = list(new.token_ids)
            self.tables[new.request_id] = []
            self.seeds[new.request_id] = new.sampling_seed
        for update in plan.table_updates:
            table = self.tables[update.request_id]
            assert update.first <= len(table)
            table[update.first : update.first + len(update.block_ids)] = update.block_ids
        self._move(plan)

    def _move(self, plan: StepPlan) -> None:
        written, read = {swap.slot for swap in plan.swaps_out}, {swap.slot for swap in plan.swaps_in}
        assert len(written) == len(plan.swaps_out) and len(read) == len(plan.swaps_in) and not written & read
        assert all(0 <= slot < self.num_swap_blocks for slot in written | read)
        fresh = [*(copy.target for copy in plan.copies), *(swap.block_id for swap in plan.swaps_in)]
        assert len(set(fresh)) == len(fresh), "a block is given out twice"
        for swap in plan.swaps_out:
            self.num_swaps_out += 1
            self.host[swap.slot] = self.slots[self._slots_of(swap.block_id)]
        copied = [self.slots[self._slots_of(copy.source)] for copy in plan.copies]
        for copy, held in zip(plan.copies, copied, strict=True):
            self.slots[self._slots_of(copy.target)] = held
            self.num_copies += 1
        for swap in plan.swaps_in:
            # Once: a slot that is read again was written again.
            self.slots[self._slots_of(swap.block_id)] = self.host.pop(swap.slot)
            self.num_swaps_in += 1

    def _slots_of(self, block_id: int) -> slice:
        return slice(block_id * self.block_size, (block_id + 1) * self.block_size)

    def _slot(self, request_id: int, position: int) -> int:
        return self.tables[request_id][position // self.block_size] * self.block_size + position % self.block_size

    def _write(self, chunk) -> bytes:
        assert chunk.num_tokens >= 1, "a query of no tokens"
        tokens = self.rows[chunk.request_id]
        end = chunk.start + chunk.num_tokens
        assert chunk.samples == (end == len(tokens))
        parent = b""
        if chunk.start:
            parent = self.slots[self._slot(chunk.request_id, chunk.start - 1)]
            assert parent is not None, "K/V read that was never written"
        for position in range(chunk.start, end):
            parent = history_hash(parent, tokens[position])
            self.slots[self._slot(chunk.request_id, position)] = parent
        self.num_computed_tokens += chunk.num_tokens
        return parent

    def _read(self, request_id: int, end: int) -> None:
        history = b""
        for position in range(end):
            history = history_hash(history, self.rows[request_id][position])
            slot = self._slot(request_id, position)
            assert self.slots[slot] == history, f"request {request_id} reads another history at position {position}"

    def memory(self) -> MemoryReport:
        return MemoryReport(weights_bytes=0, kv_cache_bytes=0)


def make_engine(
    *,
    num_blocks: int,
    block_size: int,
    policy: str = "fcfs.FCFS",
    policy_kwargs: Mapping[str, Any] | None = None,
    predictor: str = "oracle.Oracle",
    predictor_kwargs: Mapping[str, Any] | None = None,
    eviction: str = "lru.LRU",
    prefix_caching: bool = True,
    reuse_kv: bool = True,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 16,
    chunked_prefill: bool = True,
    watermark_fraction: float = 0.0,
    max_model_len: int = 64,
    overlap: bool = False,
    victim: str = "least_deserving.LeastDeserving",
    preemption: PreemptionConfig | None = None,
    speculation: SpeculationConfig | None = None,
    make_runner: Callable[[EngineConfig, int, int], Runner] | None = None,
    clock: Clock | None = None,
) -> Engine:
    """An engine over symbols; `make_runner` makes another runner of its config, its blocks and its context."""
    config = EngineConfig(
        model=ModelConfig(path="symbolic"),
        scheduler=SchedulerConfig(
            policy=Component(target=f"minivllm.scheduler.{policy}", kwargs=policy_kwargs or {}),
            predictor=Component(target=f"minivllm.scheduler.predictors.{predictor}", kwargs=predictor_kwargs or {}),
            victim=Component(target=f"minivllm.scheduler.victims.{victim}"),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            chunked_prefill=chunked_prefill,
            watermark_fraction=watermark_fraction,
        ),
        cache=CacheConfig(
            block_size=block_size,
            num_blocks=num_blocks,
            prefix_caching=prefix_caching,
            eviction=Component(target=f"minivllm.blocks.{eviction}"),
            reuse_kv=reuse_kv,
        ),
        execution=ExecutionConfig(overlap=overlap),
        speculation=speculation or SpeculationConfig(),
        preemption=preemption or PreemptionConfig(),
    )
    if make_runner is not None:
        return Engine(config, make_runner(config, num_blocks, max_model_len), clock)
    num_swap_blocks = config.preemption.num_swap_blocks or 0
    return Engine(config, SymbolicRunner(num_blocks, block_size, max_model_len, num_swap_blocks), clock)
