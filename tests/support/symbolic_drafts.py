"""A symbolic runner that drafts: chains and trees, right and wrong, with a drafter whose own K/V are symbols, too.

The drafter's K/V lies in slots beside the target's, and `DraftCache` says what of it is there: whatever it says is
believed, and every read is asserted, as for the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from speculating import dice
from symbolic import VOCAB_SIZE, SymbolicRunner, history_hash, next_token

from minivllm.config import EngineConfig
from minivllm.plan import Chunk, SampledTokens, StepPlan, StepResult
from minivllm.runner.block_moves import BlockMoves
from minivllm.runner.rows import Rows
from minivllm.speculation.base import DraftRequest
from minivllm.speculation.paged import DraftCache
from minivllm.speculation.target import DraftTarget
from minivllm.speculation.tree import DraftTree

# A chain, bushes, and a tree whose longest path is not its first.
TREES = (
    None,
    DraftTree((-1, -1, 0, 0, 1, 2)),
    DraftTree((-1, 0, -1, 2, 3, 2, 4, 1)),
)
_SPEC: Any = SimpleNamespace(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, sliding_windows=(None,))


def make_draft_cache(config: EngineConfig, num_blocks: int, max_model_len: int) -> DraftCache:
    """The K/V of a drafter with one tiny layer."""
    target = DraftTarget(
        config=config,
        model=None,  # type: ignore[arg-type]
        kernels="torch",
        ops=None,  # type: ignore[arg-type]
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_model_len=max_model_len,
    )
    cache = DraftCache(_SPEC, target)
    cache.allocate(num_blocks)
    return cache


class DraftingRunner(SymbolicRunner):
    """Drafts by dice.

    Args:
        config: the engine's.
        num_blocks, max_model_len: of the pool.
        percent_right: how often a draft is right, where all before it are.
        percent_short: how often it finds fewer drafts than it may.
        tree: the drafts' shape; None is a chain.
    """

    def __init__(
        self,
        config: EngineConfig,
        num_blocks: int,
        max_model_len: int,
        *,
        percent_right: int,
        percent_short: int = 0,
        tree: DraftTree | None = None,
    ) -> None:
        size = config.cache.block_size
        super().__init__(num_blocks, size, max_model_len, config.preemption.num_swap_blocks or 0)
        self._percent_right = percent_right
        self._percent_short = percent_short
        self._tree = tree
        self._numbers = Rows(config.scheduler.max_num_seqs, max_model_len, size)
        self._most_tokens = config.scheduler.max_num_batched_tokens
        self.cache = make_draft_cache(config, num_blocks, max_model_len)
        self.draft_slots: list[bytes | None] = [None] * (num_blocks * size)
        self.draft_host: dict[int, list[bytes | None]] = {}
        # What the cache knows of blocks moves with them.
        self._moves = BlockMoves(self.cache.block_tensors(), self.num_swap_blocks)
        self._num_steps = 0
        self.num_read_by_drafter = 0
        # Of each request, all verifications: drafts, those on the longest path, accepted ones.
        self.verifications: dict[int, list[tuple[int, int, int]]] = {}

    def _apply(self, plan: StepPlan) -> None:
        super()._apply(plan)
        for swap in plan.swaps_out:
            self.draft_host[swap.slot] = self.draft_slots[self._slots_of(swap.block_id)]
        copied = [self.draft_slots[self._slots_of(copy.source)] for copy in plan.copies]
        for copy, held in zip(plan.copies, copied, strict=True):
            self.draft_slots[self._slots_of(copy.target)] = held
        for swap in plan.swaps_in:
            self.draft_slots[self._slots_of(swap.block_id)] = self.draft_host.pop(swap.slot)
        self._moves.apply(plan)
        self._numbers.release(plan)
        for new in plan.new_rows:
            self._numbers.add(new)
        self._numbers.update_tables(plan)
        for request_id in plan.released:
            self.cache.end(request_id)
        self.cache.update(plan)

    def _run(self, plan: StepPlan) -> StepResult:
        self._apply(plan)
        self._num_steps += 1
        drafting = [chunk for chunk in plan.chunks if chunk.num_draft_tokens]
        for chunk in drafting:
            assert chunk.samples and chunk.num_tokens == 1 and chunk.start > 0
        drafts = self._draft(drafting)
        histories = {chunk.request_id: self._write(chunk) for chunk in plan.chunks}
        states = {
            chunk.request_id: self._write_drafts(chunk, histories[chunk.request_id], drafts[chunk.request_id])
            for chunk in drafting
        }
        samples = []
        for chunk in plan.chunks:
            self._read(chunk.request_id, chunk.start + chunk.num_tokens)
            if chunk.samples:
                samples.append(self._verify(chunk, drafts.get(chunk.request_id, ()), states.get(chunk.request_id)))
        for sample in samples:
            self.cache.accepted(sample.request_id, len(self.rows[sample.request_id]) - 1)
        return StepResult(samples=tuple(samples))

    def _parent(self, node: int) -> int:
        return node - 1 if self._tree is None else self._tree.parents[node]

    def _draft(self, chunks: Sequence[Chunk]) -> dict[int, list[int]]:
        """Drafts of each request, in the order of their nodes, and their K/V in the drafter."""
        requests = [
            DraftRequest(
                request_id=chunk.request_id,
                row=self._numbers.row_of(chunk.request_id),
                num_tokens=chunk.start + 1,
                num_draft_tokens=chunk.num_draft_tokens,
            )
            for chunk in chunks
        ]
        if not requests:
            return {}
        for part in self.cache.unread(requests, self._most_tokens):
            for request, start, end in part:
                self._read_anew(request, start, end)
        self.cache.read(requests, self._numbers)
        drafts = {}
        for request in requests:
            self._check_drafter(request.request_id, request.num_tokens)
            tokens = self._choose(request)
            if self._tree is None and tokens:
                self._write_ahead(request, tokens[:-1])
            drafts[request.request_id] = tokens
        return drafts

    def _read_anew(self, request: DraftRequest, start: int, end: int) -> None:
        assert end > start
        history = b""
        if start:
            before = self.draft_slots[self._slot(request.request_id, start - 1)]
            assert before is not None, "the drafter reads K/V that it never wrote"
            history = before
        for position in range(start, end):
            history = history_hash(history, self.rows[request.request_id][position])
            self.draft_slots[self._slot(request.request_id, position)] = history
        self.num_read_by_drafter += end - start

    def _check_drafter(self, request_id: int, num_tokens: int) -> None:
        history = b""
        for position in range(num_tokens):
            history = history_hash(history, self.rows[request_id][position])
            slot = self._slot(request_id, position)
            assert self.draft_slots[slot] == history, f"request {request_id}: its drafter reads another history"

    def _write_ahead(self, request: DraftRequest, tokens: Sequence[int]) -> None:
        history = self.draft_slots[self._slot(request.request_id, request.num_tokens - 1)]
        assert history is not None
        for offset, token_id in enumerate(tokens):
            history = history_hash(history, token_id)
            self.draft_slots[self._slot(request.request_id, request.num_tokens + offset)] = history
        self.cache.drafted(request.request_id, request.num_tokens + len(tokens))

    def _choose(self, request: DraftRequest) -> list[int]:
        seeds = (self._num_steps, request.request_id)
        most = request.num_draft_tokens if self._tree is None else min(request.num_draft_tokens, self._tree.num_nodes)
        count = dice(most + 1, *seeds) if dice(100, *seeds, 1) < self._percent_short else most
        tokens: list[int] = []
        histories = {-1: self._history(request.request_id)}
        for node in range(count):
            parent = self._parent(node)
            siblings = {tokens[other] for other in range(node) if self._parent(other) == parent}
            own = next_token(histories[parent], self.seeds[request.request_id])
            right = dice(100, *seeds, 2, node) < self._percent_right and own not in siblings
            wrong = [token for token in range(VOCAB_SIZE) if token != own and token not in siblings]
            tokens.append(own if right else wrong[dice(len(wrong), *seeds, 3, node)])
            histories[node] = history_hash(histories[parent], tokens[-1])
        return tokens

    def _history(self, request_id: int) -> bytes:
        history = b""
        for token_id in self.rows[request_id]:
            history = history_hash(history, token_id)
        return history

    def _write_drafts(self, chunk: Chunk, history: bytes, tokens: Sequence[int]) -> dict[int, bytes]:
        """K/V of all nodes, side by side behind the newest token."""
        histories = {-1: history}
        for node, token_id in enumerate(tokens):
            histories[node] = history_hash(histories[self._parent(node)], token_id)
            self.slots[self._slot(chunk.request_id, chunk.start + 1 + node)] = histories[node]
        return histories

    def _verify(self, chunk: Chunk, tokens: Sequence[int], histories: dict[int, bytes] | None) -> SampledTokens:
        """Follow the target from the root of the drafts, reading what each node sees."""
        request_id, row = chunk.request_id, self.rows[chunk.request_id]
        if histories is None:
            histories = {-1: self._history(request_id)}
        for node, history in enumerate(list(histories.values())[1:]):
            slot = self._slot(request_id, chunk.start + 1 + node)
            assert self.slots[slot] == history, "two requests write their drafts to one slot"
        path, at = [], -1
        while True:
            own = next_token(histories[at], self.seeds[request_id])
            row.append(own)
            agreeing = [n for n, token in enumerate(tokens) if self._parent(n) == at and token == own]
            if not agreeing:
                break
            (at,) = agreeing
            path.append(at)
        first = chunk.start + chunk.num_tokens
        for place, node in enumerate(path):
            self.slots[self._slot(request_id, first + place)] = histories[node]
        depth = len(tokens) if self._tree is None else max(self._tree.depths[: len(tokens)], default=0)
        if tokens:
            self.verifications.setdefault(request_id, []).append((len(tokens), depth, len(path)))
        return SampledTokens(
            request_id=request_id,
            token_ids=tuple(row[first:]),
            num_draft_tokens=len(tokens),
            draft_depth=depth,
        )
