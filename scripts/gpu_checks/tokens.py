"""The engine's tokens on the GPU are those of the CPU: greedy, in float32, for every way of running a step. And a
batch-invariant engine gives a request the same logprobs, to the last bit, alone and in company."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, TypeAlias

from gpu_checks.check import Check, Piece
from gpu_checks.models import REFERENCE, ROOT, greedy, make_llm, requests

from minivllm import LLM
from minivllm.llm import RequestOutput

# Closer than this, the two likeliest tokens are a tie: rounding may choose either.
_TIE = 1e-4
_NUM_PROMPTS = 64
_Prompts: TypeAlias = "tuple[tuple[int, ...], ...]"
_MAX_TOKENS = 48
# Where prompts end: around blocks and tiles, and more of them than a step's budget.
_LENGTHS = (1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 47, 63, 64, 65, 100, 127, 129, 200, 255, 257, 301, 399, 511, 700)


def pieces(check: Check) -> Iterator[Piece]:
    for overlap, graphs, invariant in itertools.product((True, False), repeat=3):
        if check.tiny and (graphs or overlap != invariant):
            continue
        name = f"engine tokens: overlap={overlap} cuda_graphs={graphs} batch_invariant={invariant}".lower()
        options = {"overlap": overlap, "batch_invariant": invariant}
        yield name, partial(check_tokens, check, name, options | ({} if check.tiny else {"cuda_graphs": graphs}))
    yield "batch invariance: reference float32", partial(_invariance, check, "reference float32")
    if not check.tiny:
        yield "batch invariance: reference float16", partial(_invariance, check, "reference float16")
        yield "batch invariance: Qwen3-0.6B shape bfloat16", partial(_invariance, check, "Qwen3-0.6B shape bfloat16")
        yield "batch invariance: Qwen3-8B shape bfloat16", partial(_invariance, check, "Qwen3-8B shape bfloat16")


def _reference(check: Check, **options: Any) -> LLM:
    """The trained model, in float32 where nothing else is said; small steps, so that prompts come in chunks."""
    if check.tiny:
        return make_llm(check, "Qwen3-0.6B", **options)
    given = {"block_size": 16, "max_num_seqs": 64, "max_num_batched_tokens": 256, "max_model_len": 1024}
    return LLM(str(REFERENCE), **(given | {"dtype": "float32", "device": "cuda", "num_blocks": 4096} | options))


@cache
def _prompts(num: int, vocab_size: int | None) -> _Prompts:
    """Stretches of the held-out text, of odd lengths; random tokens where there is no text."""
    if vocab_size is not None:
        return tuple(tuple(one["prompt_token_ids"]) for one in requests(num, (1, 5, 17), vocab_size))
    from minivllm.llm import load_tokenizer

    file = ROOT / "experiments" / "assets" / "heldout.jsonl"
    tokenizer = load_tokenizer(str(REFERENCE))
    with file.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 16)]
    streams = [tokenizer.encode(text[:20_000]) for text in texts]
    prompts = []
    for i in range(num):
        length, stream = _LENGTHS[i % len(_LENGTHS)], streams[i % len(streams)]
        start = (i * 97) % max(1, len(stream) - length)
        prompts.append(tuple(stream[start : start + length]))
    return tuple(prompts)


def _generate(llm: LLM, prompts: _Prompts, max_tokens: int, num_logprobs: int | None) -> list[RequestOutput]:
    params = greedy(max_tokens, logprobs=num_logprobs)
    return llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params)


@cache
def _expected(check: Check) -> list[RequestOutput]:
    """What PyTorch on the CPU says, and how close the second likeliest token was."""
    llm = _reference(check, device="cpu", dtype="float32", kernels="torch")
    return _generate(llm, _prompts_for(check), 2 if check.tiny else _MAX_TOKENS, 2)


def _prompts_for(check: Check) -> _Prompts:
    return _prompts(3, 300) if check.tiny else _prompts(_NUM_PROMPTS, None)


def check_tokens(check: Check, name: str, options: dict[str, Any]) -> None:
    """One engine's tokens, against those of PyTorch on the CPU."""
    expected = _expected(check)
    llm = _reference(check, **options)
    found = _generate(llm, _prompts_for(check), 2 if check.tiny else _MAX_TOKENS, None)
    ties, wrong = 0, []
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        mine, right = ours.outputs[0], theirs.outputs[0]
        pairs = enumerate(zip(mine.token_ids, right.token_ids, strict=True))
        place = next((i for i, (a, b) in pairs if a != b), None)
        if place is None:
            continue
        # What comes after the first difference has another history.
        assert right.logprobs is not None
        best, second, *_ = sorted(right.logprobs[place].values(), reverse=True)
        if best - second < _TIE:
            ties += 1
        else:
            wrong.append(f"prompt {number} of {len(ours.prompt_token_ids)} tokens at {place}, gap {best - second:.2g}")
    detail = f"{len(found)} prompts, {ties} differ at a tie" + "".join(f"; {text}" for text in wrong[:3])
    check.within(name, len(wrong), 0, unit="prompts that differ", detail=detail)


def _invariance(check: Check, kind: str) -> None:
    model, _, dtype = kind.rpartition(" ")
    if model == "reference":
        llm = _reference(check, batch_invariant=True, dtype=dtype)
        prompts = _prompts_for(check)
    else:
        # A layer's bits do not depend on how many layers follow; one keeps it quick.
        llm = make_llm(check, model.removesuffix(" shape"), batch_invariant=True, one_layer=True, num_blocks=256)
        prompts = tuple(tuple(one["prompt_token_ids"]) for one in requests(33, _LENGTHS, 151_936))
    max_tokens, chosen = (2, (1,)) if check.tiny else (16, (0, 5, 13, 19, 23))
    together = _generate(llm, prompts, max_tokens, 5)
    differing = []
    for i in chosen:
        # Cached blocks would be read instead of computed again.
        llm.engine.reset_prefix_cache()
        (alone,) = _generate(llm, (prompts[i],), max_tokens, 5)
        if alone.outputs[0].logprobs != together[i].outputs[0].logprobs:
            differing.append(f"prompt of {len(prompts[i])} tokens")
    detail = f"{len(chosen)} requests alone, and among {len(prompts)}" + "".join(f"; {text}" for text in differing)
    check.within(f"batch invariance: {kind}", len(differing), 0, unit="requests that differ", detail=detail)
