#!/usr/bin/env python
"""Our engine against transformers on this CPU: reference model, fp32, same threads, same minute.

    ./scripts/bench_cpu                  # every comparison, about three minutes
    ./scripts/bench_cpu --rounds 9

Each comparison runs its contestants in turn, round by round, so that a slow minute of the machine hits all of them,
and reports the median time of each and the median of the ratios round by round.

    one             one request: `generate`, prompt of 64 tokens, 96 new
    static16        16 requests of one length: `generate` with a batch of 16
    batch32         32 ragged requests: `generate_batch`, transformers' continuous batching
    concurrent4     ours against ours: four requests of 32 tokens together, and one after the other

The floor of a decode step is what no implementation on this machine can beat: every weight is read once a step (bytes
over measured bandwidth), every product is computed once (FLOPs over the measured peak); the larger of the two counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from minivllm import LLM, SamplingParams

ASSETS = Path(__file__).resolve().parents[1] / "experiments" / "assets"

logging.getLogger("transformers").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def contest(rounds: int, *contestants: Callable[[], object]) -> list[list[float]]:
    """Seconds by contestant and round, after one warm-up each."""
    for run in contestants:
        run()
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for i, run in enumerate(contestants):
            times[i].append(timed(run))
    return times


def prompts_of(llm: LLM, lengths: list[int]) -> list[list[int]]:
    """Held-out code, one file a prompt (files again from the start when they run out)."""
    with open(ASSETS / "heldout.jsonl", encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f]
    documents = [llm.tokenizer.encode(text) for text in texts]
    documents = [d for d in documents if len(d) > max(lengths) + 64]
    return [documents[i % len(documents)][7 * (i // len(documents)) :][:n] for i, n in enumerate(lengths)]


def ours(llm: LLM, prompts: list[list[int]], new_tokens: list[int]) -> Callable[[], object]:
    inputs = [{"prompt_token_ids": p} for p in prompts]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in new_tokens]

    def run() -> object:
        # Every round pays for its prompts.
        llm.engine.reset_prefix_cache()
        return llm.generate(inputs, params)

    return run


def theirs(model, prompts: list[list[int]], new_tokens: int) -> Callable[[], object]:
    ids = torch.tensor(prompts)
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def run() -> object:
        out = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
        assert out.shape[1] == ids.shape[1] + new_tokens
        return out

    return run


def theirs_continuous(model, prompts: list[list[int]], new_tokens: int) -> Callable[[], object]:
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
    )

    def run() -> object:
        out = model.generate_batch(inputs=prompts, generation_config=config)
        assert len(out) == len(prompts)
        assert all(len(result.generated_tokens) == new_tokens for result in out.values())
        return out

    return run


def read_bandwidth_bytes_per_s() -> float:
    """Summing a buffer the size of the weights, again and again: caches count, as they do for the weights."""
    buffer = torch.ones(5_500_000)
    return buffer.nbytes / statistics.median(timed(buffer.sum) for _ in range(50))


def peak_flops() -> float:
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / statistics.median(timed(lambda: a @ b) for _ in range(15))


def floor_s(llm: LLM, batch: int, context: int, bandwidth: float, flops: float) -> float:
    """Least time of one decode step: weights read once, K/V of every request read once, all products computed."""
    spec = llm.engine.runner.model.spec
    weights = llm.engine.memory().weights_bytes
    kv = batch * context * spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * 4
    products = 2 * batch * (weights / 4 + context * spec.num_layers * 2 * spec.num_heads * spec.head_dim)
    return max((weights + kv) / bandwidth, products / flops)


def line(name: str, tokens: int, times: list[list[float]], labels: list[str], aim: float) -> float:
    ratios = [b / a for a, b in zip(times[0], times[1], strict=True)]
    ratio = statistics.median(ratios)
    parts = [f"{label} {tokens / statistics.median(t):7.0f} tok/s" for label, t in zip(labels, times, strict=True)]
    verdict = f"aim {aim:g}: {'reached' if ratio >= aim else 'missed'}"
    print(f"{name:12s} {'   '.join(parts)}   ratio {ratio:5.2f} [{min(ratios):.2f}, {max(ratios):.2f}]  {verdict}")
    sys.stdout.flush()
    return statistics.median(times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", type=Path, default=ASSETS / "reference-target")
    parser.add_argument("--only", choices=("one", "static16", "batch32", "concurrent4"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    from transformers import AutoModelForCausalLM

    folder = args.model
    llm = LLM(str(folder), max_num_seqs=32, max_num_batched_tokens=512)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # Both sides run to the full length, and neither pays for looking at it.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    bandwidth, flops = read_bandwidth_bytes_per_s(), peak_flops()
    print(f"torch {torch.__version__}, {args.threads} threads, fp32, {args.rounds} rounds")
    megabytes = llm.engine.memory().weights_bytes / 1e6
    print(f"measured: {bandwidth / 1e9:.1f} GB/s reading {megabytes:.0f} MB, {flops / 1e9:.0f} GFLOP/s")

    def wanted(name: str) -> bool:
        return args.only in (None, name)

    def floor(batch: int, context: int, step_s: float) -> None:
        least = floor_s(llm, batch, context, bandwidth, flops)
        print(f"{'':12s} a step: {1e3 * step_s:.2f} ms, floor {1e3 * least:.2f} ms ({least / step_s:.0%} of it used)")

    if wanted("one"):
        prompt = prompts_of(llm, [64])
        times = contest(args.rounds, ours(llm, prompt, [96]), theirs(model, prompt, 96))
        floor(1, 112, line("one", 96, times, ["ours", "generate"], 3) / 96)
    if wanted("static16"):
        prompts = prompts_of(llm, [64] * 16)
        times = contest(args.rounds, ours(llm, prompts, [64] * 16), theirs(model, prompts, 64))
        floor(16, 96, line("static16", 16 * 64, times, ["ours", "generate"], 3) / 64)
    if wanted("batch32"):
        prompts = prompts_of(llm, [16 + 11 * (i % 16) for i in range(32)])
        times = contest(min(args.rounds, 5), ours(llm, prompts, [48] * 32), theirs_continuous(model, prompts, 48))
        floor(32, 130, line("batch32", 32 * 48, times, ["ours", "generate_batch"], 10) / 48)
    if wanted("concurrent4"):
        prompts = prompts_of(llm, [16] * 4)
        single = [ours(llm, [p], [32]) for p in prompts]
        times = contest(2 * args.rounds, ours(llm, prompts, [32] * 4), lambda: [run() for run in single])
        line("concurrent4", 4 * 32, times, ["together", "in turn"], 3.1)


if __name__ == "__main__":
    main()
