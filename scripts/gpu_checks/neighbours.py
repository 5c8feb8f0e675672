"""transformers with the same weights and the same load, in the same minute: `generate` over a static batch, and its
continuous batching, `generate_batch`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_checks import load
from gpu_checks.check import Check, Piece
from gpu_checks.engine import release
from gpu_checks.models import BLOCK_SIZE, SHAPES, TINY, greedy, requests

from minivllm import LLM

_AIM = 3.0


def pieces(check: Check) -> Iterator[Piece]:
    yield "transformers: the same load", partial(_compare, check)


def _compare(check: Check) -> None:
    num, lens, max_tokens = (2, [3, 5], 2) if check.tiny else (64, list(range(64, 513, 64)), 128)
    model = _make(check)
    prompts = [one["prompt_token_ids"] for one in requests(num, lens, model.config.vocab_size)]
    their_generate = _best_tps(partial(_generate, model, prompts, max_tokens))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours = _best_tps(partial(_ours, check, _engine(check, folder), prompts, max_tokens))
    release()
    load = f"{num} prompts of {lens[0]} to {lens[-1]}, {max_tokens} tokens each, Qwen3-0.6B"
    check.figure("transformers: minivllm", ours, "tok/s", detail=load)
    _against(check, "generate", ours, their_generate)
    if check.tiny:
        return
    # Last, as it may have other needs than this machine meets: that is said, and costs no figure of ours.
    try:
        theirs = _best_tps(partial(_generate_batch, model, prompts, max_tokens))
    except Exception as error:
        check.figure("transformers: generate_batch", None, "tok/s", detail=f"{type(error).__name__}: {error}"[:200])
    else:
        _against(check, "generate_batch", ours, theirs)


def _against(check: Check, name: str, ours: float, theirs: float) -> None:
    check.figure(f"transformers: minivllm against {name}", ours / theirs, "x", aim=_AIM, detail=f"{theirs:.0f} tok/s")


def _make(check: Check) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    # `pad` is what a static batch fills up with.
    shape = SHAPES["Qwen3-0.6B"] | (TINY if check.tiny else {}) | {"pad_token_id": 0}
    dtype = torch.float32 if check.tiny else torch.bfloat16
    with torch.device(check.device):
        model = Qwen3ForCausalLM(Qwen3Config(**shape)).to(dtype)
    model.generation_config.eos_token_id = None
    return model.eval()


def _engine(check: Check, folder: str) -> LLM:
    if check.tiny:
        return LLM(folder, device="cpu", dtype="float32", kernels="triton", max_model_len=64, max_num_seqs=3)
    return LLM(
        folder, device="cuda", dtype="bfloat16", block_size=BLOCK_SIZE, max_model_len=4096, max_num_seqs=64,
        max_num_batched_tokens=8192, memory_bytes=16 * 2**30,
    )  # fmt: skip


def _best_tps(way: Callable[[], int]) -> float:
    """Output tokens a second, the better of two after one that warms up."""
    best = 0.0
    for turn in range(3):
        begun_s = time.perf_counter()
        num_tokens = way()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if turn:
            best = max(best, num_tokens / (time.perf_counter() - begun_s))
    return best


@torch.inference_mode()
def _generate(model: Any, prompts: list[list[int]], max_tokens: int) -> int:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=max_tokens, min_new_tokens=max_tokens, do_sample=False, pad_token_id=0
    )
    assert out.shape[1] == longest + max_tokens
    return len(prompts) * max_tokens


# Its continuous batching does not work in inference mode.
@torch.no_grad()
def _generate_batch(model: Any, prompts: list[list[int]], max_tokens: int) -> int:
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    outputs = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    num_tokens = sum(len(output.generated_tokens) for output in outputs.values())
    assert num_tokens == len(prompts) * max_tokens, f"{num_tokens} tokens of {len(prompts) * max_tokens}"
    return num_tokens


def _ours(check: Check, llm: LLM, prompts: list[list[int]], max_tokens: int) -> int:
    ran = load.run(llm, [{"prompt_token_ids": prompt} for prompt in prompts], [greedy(max_tokens)] * len(prompts))
    check.holds("transformers compilations: minivllm", ran.num_compilations == 0)
    return ran.num_output_tokens
