"""Offline load, as others report it: all requests at once, output tokens over the time until the last ends."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from gpu_checks.check import Check, Piece
from gpu_checks.engine import release
from gpu_checks.models import SHAPES, greedy, make_llm, num_parameters, requests

from minivllm import LLM, SamplingParams


def pieces(check: Check) -> Iterator[Piece]:
    yield "load Qwen3-0.6B: 256 requests", partial(_small, check)
    yield "load Qwen3-8B: 256 requests", partial(_large, check)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """One load, from the first request's arrival to the last one's end."""

    wall_s: float
    num_output_tokens: int
    num_steps: int
    idle: float | None
    num_compilations: int
    num_preemptions: int

    @property
    def words(self) -> str:
        idle = "" if self.idle is None else f", device idle {self.idle:.1%}"
        return f"{self.wall_s:.1f} s, {self.num_steps} steps, {self.num_preemptions} preemptions{idle}"


def run(llm: LLM, prompts: Sequence[dict[str, list[int]]], params: Sequence[SamplingParams]) -> Ran:
    """Serve a load to its end, and forget it."""
    engine = llm.engine
    begun_s = time.perf_counter()
    for prompt, wanted in zip(prompts, params, strict=True):
        engine.add_request(prompt["prompt_token_ids"], wanted)
    steps = []
    while engine.has_unfinished:
        steps.append(engine.step())
    wall_s = time.perf_counter() - begun_s
    finished = engine.take_finished()
    engine.reset_prefix_cache()
    failed = [request.error for request in finished if request.error is not None]
    assert not failed, failed[0]
    busy = [step.device_s for step in steps if step.device_s is not None]
    return Ran(
        wall_s=wall_s,
        num_output_tokens=sum(len(request.output_token_ids) for request in finished),
        num_steps=len(steps),
        idle=1 - sum(busy) / wall_s if busy else None,
        num_compilations=sum(step.num_compilations for step in steps),
        num_preemptions=sum(step.num_preemptions for step in steps),
    )


def floor_s(check: Check, model: str, prompt_lens: Sequence[int], output_lens: Sequence[int]) -> float | None:
    """Seconds at measured peaks: prompts' arithmetic, then all requests side by side, weights read once a step and each
    context once a token."""
    if check.peaks is None:
        return None
    weights, kv = num_parameters(SHAPES[model])
    num_bytes = 2 * weights * max(output_lens)
    num_bytes += sum(2 * kv * (n * m + m * (m + 1) // 2) for n, m in zip(prompt_lens, output_lens, strict=True))
    head = SHAPES[model]["hidden_size"] * SHAPES[model]["vocab_size"]
    flops = 2 * (weights - head) * sum(prompt_lens)
    return num_bytes / check.peaks.read_bps + flops / check.peaks.flops["bfloat16"]


def _add(
    check: Check, name: str, model: str, ran: Ran, lens: tuple[Sequence[int], Sequence[int]], **more: object
) -> None:
    compiled = ran.num_compilations
    check.holds(f"load compilations: {name}", compiled == 0, f"{compiled} while measured" if compiled else "")
    least_s = floor_s(check, model, *lens)
    most = None if least_s is None else ran.num_output_tokens / least_s
    check.figure(
        f"load {model}: {name}", ran.num_output_tokens / ran.wall_s, "tok/s", floor=most, detail=ran.words, **more
    )


def _small(check: Check) -> None:
    """The load of nano-vllm's bench.py: lengths and tokens from `random` with seed 0, temperature 0.6."""
    model, (num, low, high) = "Qwen3-0.6B", (3, 2, 5) if check.tiny else (256, 100, 1024)
    rng = random.Random(0)
    top = 300 if check.tiny else 10_000
    ids = [[rng.randint(0, top - 1) for _ in range(rng.randint(low, high))] for _ in range(num)]
    prompts = [{"prompt_token_ids": one} for one in ids]
    output_lens = [rng.randint(low, high) for _ in range(num)]
    lens = ([len(one) for one in ids], output_lens)
    llm = make_llm(check, model, max_num_seqs=256, max_num_batched_tokens=16_384)
    run(llm, prompts[:3], [greedy(4)] * 3)
    sampled = [SamplingParams(temperature=0.6, max_tokens=n, ignore_eos=True) for n in output_lens]
    ran = run(llm, prompts, sampled)
    name = "256 requests, in and out uniform in 100-1024, temperature 0.6"
    _add(check, name, model, ran, lens, aim=18_000, reference="A800: nano-vllm-triton 10,009")
    if not check.tiny:
        ran = run(llm, prompts, [greedy(n) for n in output_lens])
        _add(check, f"{name[:-3]}0", model, ran, lens)
    del llm
    release()


def _large(check: Check) -> None:
    model, (num, length) = "Qwen3-8B", (2, 5) if check.tiny else (256, 1024)
    llm = make_llm(check, model, max_num_seqs=256, max_num_batched_tokens=16_384)
    prompts = requests(num, [length], llm.engine.runner.vocab_size)
    run(llm, prompts[:2], [greedy(4)] * 2)
    ran = run(llm, prompts, [greedy(length)] * num)
    lens = ([length] * num, [length] * num)
    _add(check, "256 requests of 1024 in and 1024 out", model, ran, lens)
    check.figure(
        f"load {model}: time of 256 requests of 1024 in and 1024 out", ran.wall_s, "s",
        floor=floor_s(check, model, *lens), aim=34.7, reference="SGLang: FlashInfer 30.85, FA3 34.70, Triton 36.91",
        detail=ran.words,
    )  # fmt: skip
    del llm
    release()
