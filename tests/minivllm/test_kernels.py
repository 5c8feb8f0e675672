"""Which kernels compute: the choice, its errors, and what our own promise beyond the exactness rule."""

from __future__ import annotations

import pytest
import torch
from tiny import VOCAB_SIZE, save_tiny_llama

from minivllm import LLM, SamplingParams
from minivllm.config import ExecutionConfig, QuantizationConfig
from minivllm.runner.kernels import resolve_kernels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("device", "dtype", "wanted"),
    [("cpu", torch.float32, "numba"), ("cpu", torch.bfloat16, "torch"), ("cuda", torch.float32, "triton")],
    ids=str,
)
def test_auto_is_our_own_kernels_where_they_serve(device: str, dtype: torch.dtype, wanted: str) -> None:
    assert resolve_kernels(ExecutionConfig(device=device), dtype) == wanted


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float16), ("cuda", torch.float32)], ids=str)
def test_numba_where_it_cannot_compute_is_refused_by_name(device: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"^execution\.kernels=numba: .* choose execution\.kernels=torch"):
        resolve_kernels(ExecutionConfig(device=device, kernels="numba"), dtype)


def test_unknown_kernels_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^execution\.kernels='cuda': must be auto, torch, numba, triton$"):
        ExecutionConfig(kernels="cuda")


def test_half_precision_on_a_cpu_runs_on_torch(folder) -> None:
    llm = LLM(str(folder), dtype="bfloat16", num_blocks=20)
    assert llm.engine.runner.kernels == "torch"
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    assert len(llm.generate({"prompt_token_ids": [3, 4]}, params)[0].outputs[0].token_ids) == 2


def _logprobs(folder, prompts, **options) -> list[list[dict[int, float]]]:
    llm = LLM(str(folder), kernels="numba", **options)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=VOCAB_SIZE - 1)
    rounds = [llm.generate([{"prompt_token_ids": p} for p in prompts], params) for _ in range(2)]
    assert all(a.outputs[0].logprobs == b.outputs[0].logprobs for a, b in zip(*rounds, strict=True))
    return [list(output.outputs[0].logprobs) for output in rounds[0]]


QUANTIZATIONS = {
    "none": {},
    "none-fp16": {"weight_dtype": "float16"},
    "int8_weight_only": {"skip": ()},
    "int8_dynamic": {"skip": ()},
    "int4": {"group_size": 32, "skip": ()},
}


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_logprobs_are_equal_to_the_last_bit_whatever_shares_the_batch(tmp_path, quantization: str) -> None:
    """Not only the same tokens: batch, block size, chunks, prefix hits and preemption change no bit of any logprob."""
    folder = save_tiny_llama(tmp_path, hidden_size=96, intermediate_size=64, num_attention_heads=8)
    prompts = [list(range(3, 3 + n)) for n in (1, 9, 17, 30)]
    scheme = QuantizationConfig.named(quantization.partition("-")[0], **QUANTIZATIONS[quantization])
    alone = [_logprobs(folder, [p], num_blocks=40, quantization=scheme)[0] for p in prompts]
    for options in (
        {"num_blocks": 40},
        {"num_blocks": 200, "block_size": 1, "max_num_batched_tokens": 5},
        {"num_blocks": 12, "block_size": 4, "prefix_caching": False, "max_num_batched_tokens": 16},
        {"num_blocks": 4, "block_size": 16, "max_num_seqs": 3},
    ):
        assert _logprobs(folder, prompts, quantization=scheme, **options) == alone, options
