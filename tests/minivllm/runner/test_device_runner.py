"""The GPU's runner, whole, under Triton's interpreter: its tokens are those of the other runner and of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCAB_SIZE, Oracle, first_wrong, save_tiny_llama

from minivllm import LLM, SamplingParams
from minivllm.config import Component, PreemptionConfig, QuantizationConfig
from minivllm.runner.decode import batch_buckets
from minivllm.runner.device_rows import Need
from minivllm.runner.device_runner import DeviceRunner

TORCH_ATTENTION = Component(target="minivllm.attention.torch_backend.TorchAttention")
TRITON_ATTENTION = Component(target="minivllm.attention.triton_backend.TritonAttention")
SWAP = PreemptionConfig.named("swap", num_swap_blocks=16)
PROMPTS = [list(range(3, 3 + n)) for n in (5, 1, 9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"), num_hidden_layers=1)


def _make_llm(folder: Path, **options: Any) -> LLM:
    options = {"kernels": "triton", "num_blocks": 12, "block_size": 4, "max_num_seqs": 3, **options}
    return LLM(str(folder), **options)


def _generate(llm: LLM, prompts: Sequence[Sequence[int]], params: Any) -> list[tuple[int, ...]]:
    outputs = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params)
    return [completion.token_ids for output in outputs for completion in output.outputs]


def _greedy(num_tokens: int = 4, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, **more)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": True},
        # Too few blocks for all: preemption while the host runs ahead.
        {"overlap": True, "num_blocks": 10, "block_size": 2, "prefix_caching": False},
        # The same, swapped.
        {"overlap": True, "num_blocks": 10, "block_size": 2, "prefix_caching": False, "preemption": SWAP},
        # Prompts in pieces beside decodes.
        {"overlap": True, "max_num_batched_tokens": 4, "block_size": 16},
        {"batch_invariant": True},
        {"attention": TORCH_ATTENTION, "overlap": True},
        {"kernels": "torch", "attention": TRITON_ATTENTION},
    ],
    ids=lambda options: "-".join(f"{k}={getattr(v, 'target', v)}".rsplit(".", 1)[-1] for k, v in options.items()),
)
def test_greedy_tokens_are_those_of_transformers(folder: Path, options: dict[str, Any]) -> None:
    llm, oracle = _make_llm(folder, **options), Oracle(folder)
    for got, prompt in zip(_generate(llm, PROMPTS, _greedy()), PROMPTS, strict=True):
        wanted, gaps = oracle.greedy(tuple(prompt), 4)
        assert first_wrong(got, wanted, gaps) == "equal"
    assert (llm.engine.scheduler.num_preemptions > 0) == (options.get("num_blocks") == 10)
    assert (llm.engine.scheduler.num_recomputed_tokens > 0) == (
        options.get("num_blocks") == 10 and "preemption" not in options
    )
    llm.engine.check()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("int8_weight_only", {}), ("int8_dynamic", {}), ("int4", {"group_size": 32})],
    ids=lambda v: str(v),
)
def test_quantized_weights_give_the_tokens_of_the_cpus_kernels(
    tmp_path: Path, name: str, kwargs: dict[str, Any]
) -> None:
    shape = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "num_hidden_layers": 1}
    folder = save_tiny_llama(tmp_path, **shape)
    quantization = QuantizationConfig.named(name, skip=(), **kwargs)
    ours, cpus = (_make_llm(folder, kernels=kernels, quantization=quantization) for kernels in ("triton", "numba"))
    assert _generate(ours, PROMPTS, _greedy()) == _generate(cpus, PROMPTS, _greedy())
    assert ours.engine.memory().precision.num_quantized_weights == cpus.engine.memory().precision.num_quantized_weights


def test_a_second_call_finds_the_first_ones_prefixes(folder: Path) -> None:
    llm = _make_llm(folder, overlap=True)
    first = _generate(llm, PROMPTS[2:], _greedy())
    output = llm.generate({"prompt_token_ids": PROMPTS[2]}, _greedy())[0]
    assert output.outputs[0].token_ids == first[0] and output.num_cached_tokens == 8


@pytest.mark.parametrize("overlap", [False, True])
def test_a_batch_of_all_kinds_draws_what_the_other_runner_draws(folder: Path, overlap: bool) -> None:
    params = [
        SamplingParams(temperature=0.8, top_k=7, seed=1, max_tokens=4, ignore_eos=True),
        SamplingParams(temperature=0, repetition_penalty=1.5, frequency_penalty=1.0, max_tokens=4, ignore_eos=True),
        SamplingParams(temperature=1.2, top_p=0.8, presence_penalty=0.5, seed=3, max_tokens=4, ignore_eos=True),
    ]
    wanted = _generate(_make_llm(folder, kernels="torch"), PROMPTS, params)
    assert _generate(_make_llm(folder, overlap=overlap), PROMPTS, params) == wanted


def test_logprobs_come_to_those_who_ask(folder: Path) -> None:
    params = [_greedy(3, logprobs=2), _greedy(3), _greedy(3, logprobs=0)]
    prompts = [{"prompt_token_ids": p} for p in PROMPTS]
    ours = _make_llm(folder, overlap=True).generate(prompts, params)
    theirs = _make_llm(folder, kernels="torch").generate(prompts, params)
    for mine, other in zip(ours, theirs, strict=True):
        a, b = mine.outputs[0].logprobs, other.outputs[0].logprobs
        assert (a is None) == (b is None)
        for at, wanted in zip(a or (), b or (), strict=True):
            assert at == pytest.approx(wanted, abs=1e-4)


def test_continuations_share_a_prompt_and_copy_on_write(folder: Path) -> None:
    params = SamplingParams(n=3, temperature=0.9, seed=5, max_tokens=3, ignore_eos=True)
    wanted = _generate(_make_llm(folder, kernels="torch"), [PROMPTS[2]], params)
    assert _generate(_make_llm(folder, overlap=True), [PROMPTS[2]], params) == wanted


class _PaddedSteps:
    """Stands for the CUDA graphs: runs what they hold, on all rows of the bucket."""

    def __init__(self, runner: Any) -> None:
        self._step = runner._steps.decode
        self.sizes: set[int] = set()

    def replay(self, size: int, need: Need) -> Any:
        self.sizes.add(size)
        return self._step.compute(size, need)


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_rows_that_pad_a_batch_change_nothing(folder: Path, batch_invariant: bool) -> None:
    wanted = _generate(_make_llm(folder), PROMPTS, _greedy())
    llm = _make_llm(folder, max_num_seqs=4, overlap=True, batch_invariant=batch_invariant)
    runner = llm.engine.runner
    assert isinstance(runner, DeviceRunner)
    padded = _PaddedSteps(runner)
    runner._steps.sizes, runner._steps.decode_graphs = (4,), padded
    assert _generate(llm, PROMPTS, _greedy()) == wanted
    assert padded.sizes == {4}


def test_bits_of_logprobs_do_not_depend_on_company_or_chunks(folder: Path) -> None:
    params = _greedy(3, logprobs=VOCAB_SIZE - 1)

    def logprobs(prompts: list[list[int]], **options: Any) -> Any:
        llm = _make_llm(folder, batch_invariant=True, **options)
        return llm.generate([{"prompt_token_ids": p} for p in prompts], params)[0].outputs[0].logprobs

    alone = logprobs(PROMPTS[2:])
    assert logprobs(PROMPTS[2:] + PROMPTS[:2]) == alone
    assert logprobs(PROMPTS[2:] + PROMPTS[:2], max_num_batched_tokens=5, overlap=True) == alone


def test_logits_that_are_no_numbers_end_their_request_alone(folder: Path) -> None:
    llm = _make_llm(folder, overlap=True)
    with torch.no_grad():
        llm.engine.runner.model.lm_head.weight.fill_(float("nan"))
    output = llm.generate({"prompt_token_ids": [3, 4]}, _greedy())[0].outputs[0]
    assert output.finish_reason == "error" and "NaN or infinite" in output.error
    llm.engine.check()


def test_buckets_pad_a_batch_by_little() -> None:
    for most in (1, 3, 8, 64, 100, 256, 513):
        sizes = batch_buckets(most)
        assert sizes[-1] == most and list(sizes) == sorted(set(sizes))
        for batch in range(1, most + 1):
            size = next(s for s in sizes if s >= batch)
            assert size - batch < max(4, batch / 4 + 8), (batch, size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, r"execution\.device='cuda': torch sees no GPU .* choose execution\.device=cpu"),
        ({"dtype": "bfloat16"}, r"execution\.dtype=bfloat16: .* choose float32"),
        ({"cuda_graphs": True}, r"execution\.cuda_graphs=True: must be null or false but on a GPU"),
        ({"kernels": "torch", "batch_invariant": True}, r"execution\.batch_invariant=true: .* execution\.kernels=auto"),
        (
            {"attention": TORCH_ATTENTION, "batch_invariant": True},
            r"execution\.batch_invariant=true: .* attention=auto",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_is_refused_with_the_option_to_choose(folder: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _make_llm(folder, **options)


def test_a_cpu_without_the_interpreter_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"^execution\.kernels=triton: needs execution\.device=cuda; choose execution"):
        _make_llm(folder)
    with pytest.raises(ValueError, match=r"^attention=triton: needs execution\.device=cuda; choose attention=auto"):
        _make_llm(folder, kernels="torch", attention=TRITON_ATTENTION)


@pytest.mark.parametrize(("found", "message"), [(None, "not installed"), ((3, 5), r"3\.5 is too old")])
def test_no_triton_or_an_old_one_is_refused(
    folder: Path, found: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivllm.triton_support.version", lambda: found)
    with pytest.raises(
        ValueError, match=rf"^execution\.kernels=triton: triton .*{message}.* choose execution\.kernels"
    ):
        _make_llm(folder)


def test_a_head_size_that_the_kernels_do_not_serve_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path, head_dim=272, num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"^attention=triton: .*256.*272: choose attention=torch"):
        _make_llm(folder)
