"""The exactness rule: every exact knob leaves greedy outputs alone, in fp32 on the CPU.

A configuration of engine and load is drawn, and its tokens must be those of transformers computing each token from
scratch. Where two likeliest tokens are closer than 1e-4 a difference is a tie: counted, printed, and rare.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from policies import POLICIES
from tiny import VOCAB_SIZE, Oracle, first_wrong, save_tiny_llama

from minivllm import LLM, SamplingParams
from minivllm.config import Component, PreemptionConfig

VICTIMS = ("least_deserving", "newest", "oldest", "largest", "smallest", "most_remaining")
EVICTIONS = ("lru.LRU", "fifo.FIFO", "lfu.LFU")
_outcomes = {"equal": 0, "tie": 0, "preemptions": 0, "hits": 0, "swapped blocks": 0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    folder = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return folder, Oracle(folder)


@st.composite
def loads(draw):
    """Prompts that share beginnings, in bursts and alone, with `n` and odd lengths."""
    stem = draw(st.lists(st.integers(3, VOCAB_SIZE - 1), min_size=40, max_size=40, unique=True))
    prompts = []
    for _ in range(draw(st.integers(1, 5))):
        shared = draw(st.integers(0, 34))
        own = draw(st.lists(st.integers(3, 9), min_size=1, max_size=4))
        prompts.append(
            (tuple(stem[:shared] + own), draw(st.sampled_from([1, 7, 18])), draw(st.sampled_from([1, 1, 3])))
        )
    return prompts


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    load=loads(),
    policy=st.sampled_from(sorted(POLICIES)),
    eviction=st.sampled_from(EVICTIONS),
    cache=st.sampled_from(["prefix", "prefix", "no prefix", "none"]),
    block_size=st.sampled_from([1, 2, 4, 16, 32]),
    max_num_batched_tokens=st.sampled_from([3, 16, 64]),
    chunked_prefill=st.booleans(),
    max_num_seqs=st.sampled_from([1, 3, 8]),
    tight=st.booleans(),
    kernels=st.sampled_from(["numba", "torch"]),
    overlap=st.booleans(),
    victim=st.sampled_from(VICTIMS),
    num_swap_blocks=st.sampled_from([None, 4, 200]),
)
def _check_configuration(
    tiny, load, policy, eviction, cache, block_size, max_num_batched_tokens, chunked_prefill, max_num_seqs, tight,
    kernels, overlap, victim, num_swap_blocks,
) -> None:  # fmt: skip
    folder, oracle = tiny
    longest = max(len(prompt) + max_tokens for prompt, max_tokens, _ in load)
    needed = -(-longest // block_size)
    swaps = num_swap_blocks is not None and cache != "none"
    llm = LLM(
        str(folder),
        policy=_component("scheduler", policy, POLICIES[policy]),
        eviction=_component("blocks", eviction),
        prefix_caching=cache == "prefix",
        reuse_kv=cache != "none",
        block_size=block_size,
        num_blocks=needed + 1 if tight else 40 * needed,
        max_num_batched_tokens=max_num_batched_tokens,
        chunked_prefill=chunked_prefill,
        max_num_seqs=max_num_seqs,
        kernels=kernels,
        overlap=overlap,
        victim=_component("scheduler.victims", f"{victim}.{''.join(part.capitalize() for part in victim.split('_'))}"),
        preemption=PreemptionConfig.named("swap", num_swap_blocks=num_swap_blocks) if swaps else "recompute",
    )
    step = llm.engine.step

    def counting():
        report = step()
        _outcomes["swapped blocks"] += report.num_swapped_blocks
        return report

    llm.engine.step = counting
    # Twice the same prompts: the second time finds the first time's blocks.
    for _ in range(2):
        outputs = llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt, _, _ in load],
            [SamplingParams(temperature=0, max_tokens=m, n=n, ignore_eos=True) for _, m, n in load],
        )
        for (prompt, max_tokens, n), output in zip(load, outputs, strict=True):
            wanted, gaps = oracle.greedy(prompt, max_tokens)
            assert len(output.outputs) == n
            _outcomes["hits"] += output.num_cached_tokens
            for completion in output.outputs:
                assert len(completion.token_ids) == max_tokens
                outcome = first_wrong(completion.token_ids, wanted, gaps)
                assert outcome in _outcomes, outcome
                _outcomes[outcome] += 1
    _outcomes["preemptions"] += llm.engine.scheduler.num_preemptions
    llm.engine.check()
    assert llm.engine.scheduler.tables.pool.num_used == 0


def test_exact_knobs_leave_greedy_tokens_alone(tiny) -> None:
    _check_configuration(tiny)
    print(_outcomes)
    # The drawn configurations reached pressure and sharing, and ties are rare.
    assert _outcomes["swapped blocks"] > 100
    assert _outcomes["equal"] > 1000 and _outcomes["preemptions"] > 10 and _outcomes["hits"] > 100
    assert _outcomes["tie"] <= 0.01 * _outcomes["equal"]


def test_six_blocks_of_sixteen_serve_four_requests_of_32_tokens(tiny) -> None:
    folder, oracle = tiny
    llm = LLM(str(folder), block_size=16, num_blocks=6, prefix_caching=False)
    prompts = [tuple(range(3 + i, 19 + i)) for i in range(4)]
    outputs = llm.generate(
        [{"prompt_token_ids": list(p)} for p in prompts], SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    )
    assert llm.engine.scheduler.num_preemptions > 0
    for prompt, output in zip(prompts, outputs, strict=True):
        assert first_wrong(output.outputs[0].token_ids, *oracle.greedy(prompt, 32)) in ("equal", "tie")


def _component(wing: str, name: str, kwargs=None):
    return Component(target=f"minivllm.{wing}.{name}", kwargs=kwargs or {})
