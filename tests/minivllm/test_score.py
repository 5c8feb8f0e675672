"""Teacher forcing: logits of a whole text, through attention, K/V cache and chunks of either runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tiny import VOCAB_SIZE, Oracle, save_tiny_llama

from minivllm import LLM, SamplingParams
from minivllm.config import Component, EngineConfig, ModelConfig

TEXT = [7, 3, 80, 12, 12, 5, 44, 61, 9, 30, 2, 18, 77]
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


def _wanted(oracle: Oracle, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return oracle.model(torch.tensor([token_ids])).logits[0]


def _make_llm(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), **{"block_size": 4, "num_blocks": 40, "max_num_seqs": 3, **options})


@settings(max_examples=12, deadline=None)
@given(
    token_ids=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40),
    block_size=st.sampled_from([1, 4, 16]),
    chunk=st.sampled_from([1, 3, 8, 64]),
    chunked=st.booleans(),
    kernels=st.sampled_from(["numba", "torch"]),
)
def test_scores_are_the_logits_of_transformers_in_chunks_of_any_size(
    folder: Path, oracle: Oracle, token_ids: list[int], block_size: int, chunk: int, chunked: bool, kernels: str
) -> None:
    llm = _make_llm(
        folder, block_size=block_size, max_num_batched_tokens=chunk, chunked_prefill=chunked, kernels=kernels
    )
    scores = llm.score(token_ids)
    assert scores.shape == (len(token_ids), VOCAB_SIZE) and scores.dtype is torch.float32
    torch.testing.assert_close(scores, _wanted(oracle, token_ids), rtol=1e-4, atol=1e-4)
    llm.engine.check()


@pytest.mark.parametrize("chunk", [64, 5], ids=lambda chunk: f"chunks-of-{chunk}")
@pytest.mark.parametrize("attention", [None, "minivllm.attention.torch_backend.TorchAttention"], ids=["ours", "torch"])
def test_the_gpu_runner_scores_as_transformers_does(
    folder: Path, oracle: Oracle, chunk: int, attention: str | None
) -> None:
    backend = Component(target=attention) if attention else None
    llm = _make_llm(
        folder, kernels="triton", attention=backend, max_num_batched_tokens=chunk, max_num_seqs=2, overlap=True
    )
    prompt = {"prompt_token_ids": TEXT[:6]}
    before = llm.generate(prompt, GREEDY)[0].outputs[0].token_ids
    torch.testing.assert_close(llm.score(TEXT[:11]), _wanted(oracle, TEXT[:11]), rtol=1e-3, atol=1e-3)
    after = llm.generate(prompt, GREEDY)[0]
    assert after.outputs[0].token_ids == before and after.num_cached_tokens == 0


def test_our_cpu_kernels_score_the_same_bits_in_chunks_of_any_size(folder: Path) -> None:
    whole = _make_llm(folder, kernels="numba").score(TEXT)
    for chunk in (1, 2, 7):
        assert torch.equal(_make_llm(folder, kernels="numba", max_num_batched_tokens=chunk).score(TEXT), whole)


def test_hidden_states_are_what_the_head_turns_into_scores(folder: Path) -> None:
    llm = _make_llm(folder)
    hidden = llm.hidden_states(TEXT)
    assert hidden.shape == (len(TEXT), 48)
    assert torch.equal(llm.compute_logits(hidden[3:5]), llm.score(TEXT)[3:5])


def test_scores_between_requests_change_neither_their_tokens_nor_the_pool(folder: Path) -> None:
    """The pool is as small as the text: taking its blocks would evict prefixes, were they not dropped."""
    llm, undisturbed = (_make_llm(folder, num_blocks=4) for _ in range(2))
    prompt = {"prompt_token_ids": TEXT[:9]}
    first = llm.generate(prompt, GREEDY)[0]
    scores = llm.score(TEXT)
    again = llm.generate(prompt, GREEDY)[0]
    assert again.num_cached_tokens == 0 and again.outputs[0].token_ids == first.outputs[0].token_ids
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 8
    pool, fresh = llm.engine.scheduler.tables.pool, undisturbed.engine.scheduler.tables.pool
    assert pool.num_evictions == 0 and pool.num_used == 0
    assert torch.equal(llm.score(TEXT), scores)
    assert [pool.allocate() for _ in range(4)] == [fresh.allocate() for _ in range(4)]


def test_a_text_as_long_as_the_context_is_scored(folder: Path) -> None:
    llm = _make_llm(folder, max_model_len=len(TEXT))
    assert len(llm.score(TEXT)) == len(TEXT)


def test_a_text_that_comes_to_nan_leaves_no_nan_in_the_cache(folder: Path) -> None:
    llm = _make_llm(folder)
    parts = llm.engine.runner.parts
    forward = parts.model.forward

    def broken(*args: Any) -> torch.Tensor:
        hidden = forward(*args)
        parts.kv_cache[:, :2] = float("nan")
        return hidden * float("nan")

    parts.model.forward = broken
    assert llm.score(TEXT).isnan().all()
    assert not parts.kv_cache.isnan().any()


def test_a_busy_engine_is_refused(folder: Path) -> None:
    llm = _make_llm(folder)
    (request_id,) = llm.engine.add_request(TEXT, GREEDY)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^score: the engine has unfinished requests: finish or abort"):
            llm.score(TEXT)
        llm.engine.step()
    llm.engine.abort(request_id)
    assert len(llm.score(TEXT)) == len(TEXT)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([], r"prompt_token_ids: is empty"),
        ([3, VOCAB_SIZE], rf"prompt_token_ids: {VOCAB_SIZE} is outside of the vocabulary \[0, {VOCAB_SIZE}\)"),
        ([3, -1], r"prompt_token_ids: -1 is outside"),
        ([3] * 161, r"prompt_token_ids: 161 of them are more than model.max_model_len=160"),
        ([3] * 17, r"prompt_token_ids: 17 of them need 5 K/V blocks of 4, the pool has cache.num_blocks=4: raise"),
    ],
    ids=["empty", "too-high", "negative", "too-long", "too-few-blocks"],
)
def test_a_text_that_cannot_be_read_is_refused_by_name(folder: Path, token_ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        _make_llm(folder, num_blocks=4).score(token_ids)


def test_a_runner_without_a_model_is_refused(folder: Path) -> None:
    from symbolic import SymbolicRunner

    from minivllm.engine import Engine
    from minivllm.runner.score import hidden_states

    config = EngineConfig(model=ModelConfig(path=str(folder)))
    with pytest.raises(ValueError, match=r"^score: SymbolicRunner computes with no model"):
        hidden_states(Engine(config, SymbolicRunner(num_blocks=8, block_size=16)), TEXT)
