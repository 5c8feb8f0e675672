"""A drafter's own K/V: what it has read of each block, and what it reads anew."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from draft_targets import save_noisy_copy
from hypothesis import given, settings
from symbolic_drafts import make_draft_cache
from tiny import save_tiny_llama

from minivllm import LLM, SamplingParams
from minivllm.config import CacheConfig, EngineConfig, ModelConfig, SpeculationConfig
from minivllm.models.llama import Decoder
from minivllm.plan import BlockCopy, BlockSwap, Chunk, NewRow, StepPlan, TableUpdate
from minivllm.runner.block_moves import BlockMoves
from minivllm.runner.rows import Rows
from minivllm.speculation.base import DraftRequest
from minivllm.speculation.paged import DraftCache

_SIZE = 4


class Books:
    """A cache and the rows that it looks at, told by plans of one request each."""

    def __init__(self) -> None:
        config = EngineConfig(model=ModelConfig(path="none"), cache=CacheConfig(block_size=_SIZE))
        self.cache: DraftCache = make_draft_cache(config, num_blocks=64, max_model_len=200)
        self.rows = Rows(8, 200, _SIZE)

    def start(self, request_id: int, block_ids: tuple[int, ...], start: int = 0) -> None:
        """A request begins to compute at `start`; its blocks before that are shared."""
        row = NewRow(
            request_id=request_id,
            token_ids=(0,),
            num_prompt_tokens=1,
            sampling_params=SamplingParams(),
            sampling_seed=0,
        )
        self._tell((row,), TableUpdate(request_id=request_id, first=0, block_ids=block_ids), start)

    def grow(self, request_id: int, first: int, block_ids: tuple[int, ...]) -> None:
        self._tell((), TableUpdate(request_id=request_id, first=first, block_ids=block_ids), 0)

    def _tell(self, new_rows: tuple[NewRow, ...], update: TableUpdate, start: int) -> None:
        chunk = Chunk(request_id=update.request_id, start=start, num_tokens=1, samples=True)
        plan = StepPlan(step=0, released=(), new_rows=new_rows, table_updates=(update,), copies=(), others=(chunk,))
        for new in new_rows:
            self.rows.add(new)
        self.rows.update_tables(plan)
        self.cache.update(plan)

    def read(self, request_id: int, num_tokens: int) -> None:
        self.cache.read([self.request(request_id, num_tokens)], self.rows)

    def request(self, request_id: int, num_tokens: int) -> DraftRequest:
        row = self.rows.row_of(request_id)
        return DraftRequest(request_id=request_id, row=row, num_tokens=num_tokens, num_draft_tokens=1)


def test_a_request_starts_behind_what_was_read_of_the_blocks_that_it_shares() -> None:
    books = Books()
    books.start(0, (5, 6, 7))
    assert books.cache.num_read(0) == 0
    # Two blocks are full; the third one is not.
    books.read(0, 10)
    books.start(1, (5, 6, 9), start=8)
    assert books.cache.num_read(1) == 8
    # Of a block that nobody has read, nothing is there, nor behind it.
    books.start(2, (5, 20, 6), start=12)
    assert books.cache.num_read(2) == 4


def test_a_block_that_is_given_out_anew_holds_nothing() -> None:
    books = Books()
    books.start(0, (5, 6))
    books.read(0, 8)
    books.start(1, (5, 6), start=8)
    assert books.cache.num_read(1) == 8
    books.grow(1, 2, (7,))
    books.start(2, (6,), start=0)
    books.start(3, (5, 6), start=8)
    assert books.cache.num_read(3) == 4


def test_a_shared_block_behind_the_start_is_written_and_so_not_read() -> None:
    books = Books()
    books.start(0, (5, 6))
    books.read(0, 8)
    # Of the second block three tokens are shared, in a copy of it.
    books.start(1, (5, 8), start=7)
    assert books.cache.num_read(1) == 4


def test_accepted_drafts_were_read_as_far_as_they_were_computed() -> None:
    books = Books()
    books.start(0, (5, 6, 7, 8))
    books.read(0, 6)
    books.cache.drafted(0, 9)
    books.cache.accepted(0, 8)
    assert books.cache.num_read(0) == 8
    # What was drafted before is no draft of the next step.
    books.cache.accepted(0, 9)
    assert books.cache.num_read(0) == 8
    books.read(0, 9)
    books.cache.drafted(0, 10)
    books.cache.accepted(0, 12)
    assert books.cache.num_read(0) == 10
    books.cache.end(0)
    books.cache.accepted(0, 12)
    books.cache.end(0)


def test_blocks_that_accepted_drafts_filled_are_shared_too() -> None:
    books = Books()
    books.start(0, (5, 6, 7, 8))
    books.read(0, 3)
    # A draft fills the first block, and the next one is begun.
    books.cache.drafted(0, 6)
    books.cache.accepted(0, 6)
    books.read(0, 9)
    books.start(1, (5, 6, 9), start=8)
    assert books.cache.num_read(1) == 8


def test_blocks_that_move_take_the_drafters_part_along() -> None:
    """Copies, and a way through host memory, with what is known of the block: it was read whole."""
    books = Books()
    cache, moves = books.cache, BlockMoves(books.cache.block_tensors(), num_slots=2)
    books.start(0, (2, 3))
    books.read(0, 5)
    cache.kv_cache[:, 2], cache.kv_cache[:, 3] = 7, 8
    moves.apply(_moving(copies=(BlockCopy(source=2, target=10),)))
    assert (cache.kv_cache[:, 10] == 7).all() and (cache.kv_cache[:, 11] == 0).all()
    swaps = (BlockSwap(block_id=2, slot=0), BlockSwap(block_id=3, slot=1))
    moves.apply(_moving(swaps_out=swaps))
    # Others get the blocks, and the request comes back to two others.
    books.start(1, (2, 3))
    cache.kv_cache[:, 2:4] = 0
    moves.apply(_moving(swaps_in=(BlockSwap(block_id=20, slot=0), BlockSwap(block_id=21, slot=1))))
    assert (cache.kv_cache[:, 20] == 7).all() and (cache.kv_cache[:, 21] == 8).all()
    books.start(2, (20, 21), start=5)
    assert cache.num_read(2) == 4 and cache.num_read(1) == 0


def _moving(**moves: Any) -> StepPlan:
    return StepPlan(**{"step": 0, "released": (), "new_rows": (), "table_updates": (), "copies": (), **moves})


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    progress=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=6),
    most_tokens=st.integers(1, 50),
)
def test_all_that_is_unread_is_read_once_in_passes_of_bounded_size(progress, most_tokens: int) -> None:
    books, requests = Books(), []
    for request_id, (num_read, num_unread) in enumerate(progress):
        books.start(request_id, tuple(range(20)))
        if num_read:
            books.read(request_id, num_read)
        requests.append(books.request(request_id, num_read + num_unread))
    passes = books.cache.unread(requests, most_tokens)
    for request, (num_read, num_unread) in zip(requests, progress, strict=True):
        parts = [(start, end) for part in passes for other, start, end in part if other == request]
        positions = [position for start, end in parts for position in range(start, end)]
        assert positions == list(range(num_read, num_read + num_unread))
        assert all(start < end for start, end in parts)
    # The newest tokens come last, together: what follows them is drafted next.
    assert [request for request, _, _ in passes[-1]] == requests
    assert all(end == request.num_tokens for request, _, end in passes[-1])
    sizes = [sum(end - start for _, start, end in part) for part in passes]
    assert all(size <= most_tokens for size in sizes[:-1])
    assert sizes[-1] <= most_tokens + len(requests)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("paged") / "target")


@pytest.fixture(scope="module")
def noisy(target: Path) -> Path:
    return save_noisy_copy(target.parent / "noisy", target, 0.05)


class Computed:
    """How many tokens each layer of each model computes, and the largest pass of a model that drafts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: Counter[tuple[Decoder, int]] = Counter()
        self.largest: Counter[Decoder] = Counter()
        run_layers = Decoder.run_layers

        def counting(model, residual, positions, attend, first=0, end=None, on_layer=None):
            for layer in range(first, model.spec.num_layers if end is None else end):
                self.tokens[model, layer] += len(residual)
            self.largest[model] = max(self.largest[model], len(residual))
            return run_layers(model, residual, positions, attend, first, end, on_layer)

        monkeypatch.setattr(Decoder, "run_layers", counting)

    def take(self, llm: LLM) -> int:
        """Tokens that the first layer of the model that drafts has computed since the last call."""
        drafted = sum(
            n for (model, layer), n in self.tokens.items() if layer == 0 and model is not llm.engine.runner.model
        )
        self.tokens.clear()
        return drafted


def _make_llm(target: Path, drafter: Path, **options) -> LLM:
    speculation = SpeculationConfig.named("draft_model", path=str(drafter), num_draft_tokens=3)
    return LLM(str(target), speculation=speculation, **{"block_size": _SIZE, "num_blocks": 200, **options})


def _greedy(llm: LLM, prompt, max_tokens: int, n: int = 1) -> tuple[int, ...]:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, n=n, ignore_eos=True)
    return llm.generate({"prompt_token_ids": list(prompt)}, params)[0].outputs[0].token_ids


def test_a_drafter_that_is_always_right_computes_every_token_once(target: Path, monkeypatch) -> None:
    computed = Computed(monkeypatch)
    llm = _make_llm(target, target)
    _greedy(llm, range(3, 24), 41)
    # Of 21 + 41 tokens the last two need no successor: a draft that nothing follows, and the last bonus.
    assert computed.take(llm) == 21 + 41 - 2


def test_a_prefix_hit_brings_the_drafters_kv_along(target: Path, noisy: Path, monkeypatch) -> None:
    computed = Computed(monkeypatch)
    llm = _make_llm(target, noisy)
    prompt = range(3, 44)
    _greedy(llm, prompt, 2 + 3)
    assert computed.take(llm) >= 41
    _greedy(llm, prompt, 2 + 3)
    # Ten blocks of four are there; behind them one token of the prompt, the output, and drafts.
    assert computed.take(llm) <= 1 + 5 * 3


def test_a_prefix_hit_on_a_text_that_drafts_wrote_brings_the_drafters_kv_along(target: Path, monkeypatch) -> None:
    computed = Computed(monkeypatch)
    llm = _make_llm(target, target)
    prompt = tuple(range(3, 24))
    text = (*prompt, *_greedy(llm, prompt, 41))
    computed.take(llm)
    _greedy(llm, text[:57], 5)
    # Fourteen blocks of four are there.
    assert computed.take(llm) <= 1 + 5


def test_siblings_that_come_later_share_what_the_drafter_has_read_of_their_prompt(
    target: Path, noisy: Path, monkeypatch
) -> None:
    computed = Computed(monkeypatch)
    llm = _make_llm(target, noisy, max_num_seqs=1)
    _greedy(llm, range(3, 44), 3, n=4)
    # The first one reads the prompt, the others go on behind its ten full blocks.
    assert computed.take(llm) <= 41 + 3 * 1 + 4 * 3 * 3


def test_a_prompt_is_read_in_passes_of_the_steps_budget(target: Path, noisy: Path, monkeypatch) -> None:
    computed = Computed(monkeypatch)
    llm = _make_llm(target, noisy, max_num_batched_tokens=8)
    _greedy(llm, range(3, 80), 6)
    (drafter,) = [model for model in computed.largest if model is not llm.engine.runner.model]
    assert computed.largest[drafter] == 8


def test_early_exit_computes_every_layer_of_every_token_once(tmp_path: Path, monkeypatch) -> None:
    computed = Computed(monkeypatch)
    folder = save_tiny_llama(tmp_path, num_hidden_layers=4)
    speculation = SpeculationConfig.named("early_exit", exit_layer=3, num_draft_tokens=4)
    llm = LLM(str(folder), speculation=speculation, block_size=_SIZE, num_blocks=200, max_num_batched_tokens=20)
    num_tokens, num_drafts = 0, 0
    for length in (1, 9, 30):
        llm.engine.add_request(
            list(range(3, 3 + length)), SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        )
    while llm.engine.has_unfinished:
        report = llm.engine.step()
        num_tokens += report.num_prefill_tokens + report.num_decode_tokens
        num_drafts += report.num_draft_tokens
    assert num_drafts > 40
    assert {layer: n for (_, layer), n in computed.tokens.items()} == dict.fromkeys(range(4), num_tokens + num_drafts)
