"""Shapes of models, engines of them, and steps of these."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_checks.check import Check

from minivllm import LLM, SamplingParams
from minivllm.plan import StepReport

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "experiments" / "assets" / "reference-target"

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "attention_bias": False,
    "hidden_act": "silu",
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": _QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "Qwen3-8B": _QWEN3
    | {
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
BLOCK_SIZE = 256


def make_llm(check: Check, model: str, **options: Any) -> LLM:
    """An engine of random weights in bfloat16, as all figures have it where they do not say otherwise."""
    shape = SHAPES[model]
    if options.pop("one_layer", False):
        shape = shape | {"num_hidden_layers": 1}
    given: dict[str, Any] = {
        "weights": "random",
        "shape": shape,
        "device": "cuda",
        "dtype": "bfloat16",
        "block_size": BLOCK_SIZE,
        "max_model_len": 4096,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 8192,
    }
    if check.tiny:
        given |= {"shape": shape | TINY, "device": "cpu", "dtype": "float32", "kernels": "triton", "block_size": 16}
        options |= {"max_model_len": 64, "max_num_seqs": 3, "max_num_batched_tokens": 16}
        options.pop("cuda_graphs", None)
        options.pop("block_size", None)
    return LLM(**(given | options))


def requests(num: int, prompt_lens: Sequence[int], vocab_size: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Prompts of random tokens, the lengths in turn."""
    rng = random.Random(seed)
    return [
        {"prompt_token_ids": [rng.randrange(vocab_size) for _ in range(prompt_lens[i % len(prompt_lens)])]}
        for i in range(num)
    ]


def greedy(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **more)


def decode_steps(llm: LLM, batch: int, context: int, num_steps: int, warm_up: int = 12) -> list[StepReport]:
    """Reports of steps in which `batch` requests decode at about `context` tokens each, in the middle of the steps."""
    engine = llm.engine
    prompt = max(1, context - num_steps // 2 - warm_up)
    vocab = engine.runner.vocab_size
    # More tokens than are needed: those that are done with their prompt decode until all are.
    params = greedy(num_steps + warm_up + 200)
    prompts = requests(batch, [prompt], vocab, seed=batch)
    ids = [engine.add_request(one["prompt_token_ids"], params)[0] for one in prompts]
    # Prompts are done when a step decodes for everybody and prefills nothing.
    while True:
        report = engine.step()
        if report.num_decode_tokens == batch and report.num_prefill_tokens == 0:
            break
        assert engine.has_unfinished, "the requests ended before all of them decoded"
    for _ in range(warm_up):
        engine.step()
    reports = [engine.step() for _ in range(num_steps)]
    for step in reports:
        assert step.num_decode_tokens == batch and step.num_prefill_tokens == 0, "a step that not only decodes"
    end_all(llm, ids)
    return reports


def end_all(llm: LLM, request_ids: Sequence[int]) -> None:
    """Forget requests that are still running, and what they left in the cache."""
    for request_id in request_ids:
        llm.engine.abort(request_id)
    # The step that was on its way.
    llm.engine.step()
    llm.engine.take_finished()
    llm.engine.reset_prefix_cache()


def num_parameters(shape: dict[str, Any]) -> tuple[int, int]:
    """Numbers that a step reads: weights of all layers and the head, and K and V of one token of context."""
    hidden, inner, size = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q, kv = shape["num_attention_heads"] * size, shape["num_key_value_heads"] * size
    layer = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner
    layers = shape["num_hidden_layers"]
    return layers * layer + hidden * shape["vocab_size"], layers * 2 * kv
