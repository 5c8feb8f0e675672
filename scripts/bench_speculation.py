#!/usr/bin/env python
"""Every drafter against no drafts on this CPU: reference model, fp32, one process, the same prompts in the same minute.

    ./scripts/bench_speculation                              # one request at a time, code, about three minutes
    ./scripts/bench_speculation --batch 8 --text prose
    ./scripts/bench_speculation --rounds 24 --only ngram,eagle

`experiment=speculation` measures the same with fresh processes and all tables; its repeats of one point are minutes
apart, and a machine whose speed drifts by tens of percent blurs them. Here a round serves a batch of prompts of its own
with every contestant in turn, so that a slow second hits all of them, and what is compared are the ratios by round.

A row: tokens a verification (its own token included) and the share of drafts accepted; milliseconds of a step that only
decodes, and of its drafting; the speed-up of the whole request, prompt included, with a 95 % interval of its median
over rounds (by order statistics); and the speed-up that the *other* rounds predict: where a step serves n requests,
gives them t tokens in d seconds, and takes p(n) without drafts, and prompts are a share f of the time without,

    predicted = 1 / (f + (1 - f) sum d / sum t p(n) / n),    sums over the steps that only decode.

`eagle 1,024` drafts the 1,024 most frequent tokens alone; `random exit` is an exit that knows nothing. The greedy
tokens of all contestants are compared, too: rounds in which any differ are counted, and fail the script.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom

from minivllm import LLM, SamplingParams
from minivllm.config import SpeculationConfig

ASSETS = Path(__file__).resolve().parents[1] / "experiments" / "assets"
PROMPT_TOKENS = 64

# That whole files are longer than the context.
logging.getLogger("transformers").setLevel(logging.ERROR)

# Of a tree with a node budget: what a trained head's second and third choices are worth on this model.
TREE = [[0], [0, 0], [1], [0, 0, 0], [0, 1], [1, 0], [0, 0, 0, 0], [2]]


def contestants() -> dict[str, SpeculationConfig | None]:
    named = SpeculationConfig.named
    draft, medusa, eagle = (str(ASSETS / f"reference-{name}") for name in ("draft", "medusa", "eagle"))
    made: dict[str, SpeculationConfig | None] = {"off": None}
    for k in (2, 4, 8):
        made[f"ngram k={k}"] = named("ngram", num_draft_tokens=k)
    made["ngram adaptive"] = named("ngram", num_draft_tokens=8, length="adaptive")
    for k in (2, 4):
        made[f"draft_model k={k}"] = named("draft_model", path=draft, num_draft_tokens=k)
        for layer in (2, 3):
            made[f"early_exit {layer} k={k}"] = named("early_exit", exit_layer=layer, num_draft_tokens=k)
        made[f"random exit 3 k={k}"] = named("early_exit", exit_layer=3, random_exit=True, num_draft_tokens=k)
        made[f"medusa k={k}"] = named("medusa", path=medusa, num_draft_tokens=k)
        made[f"eagle k={k}"] = named("eagle", path=eagle, num_draft_tokens=k)
        made[f"eagle 1,024 k={k}"] = named("eagle", path=eagle, num_draft_tokens=k, draft_vocab_size=1024)
    made["medusa tree"] = named("medusa", path=medusa, num_draft_tokens=len(TREE), tree=TREE)
    made["eagle tree"] = named("eagle", path=eagle, num_draft_tokens=len(TREE), tree=TREE)
    made["eagle adaptive"] = named("eagle", path=eagle, num_draft_tokens=4, length="adaptive")
    return made


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a contestant did with one batch of prompts."""

    seconds: float
    # Of the steps that only decode.
    num_steps: int
    steps_s: float
    draft_s: float
    # Of each: requests, tokens, seconds.
    steps: list[tuple[int, int, float]]
    num_drafts: int
    num_accepted: int
    num_verifications: int
    tokens: list[tuple[int, ...]]


def serve(llm: LLM, prompts: list[list[int]], num_tokens: int, temperature: float) -> Round:
    engine = llm.engine
    engine.reset_prefix_cache()
    params = SamplingParams(temperature=temperature, seed=0, max_tokens=num_tokens, ignore_eos=True)
    started = time.perf_counter()
    ids = [engine.add_request(prompt, params)[0] for prompt in prompts]
    reports = []
    while engine.has_unfinished:
        reports.append(engine.step())
    seconds = time.perf_counter() - started
    finished = {request.request_id: tuple(request.output_token_ids) for request in engine.take_finished()}
    decodes = [r for r in reports if r.num_prefill_tokens == 0]
    return Round(
        seconds=seconds,
        num_steps=len(decodes),
        steps_s=sum(r.duration_s for r in decodes),
        draft_s=sum(r.draft_s or 0.0 for r in decodes),
        steps=[(r.num_decode_tokens, sum(len(tokens) for _, tokens in r.emitted), r.duration_s) for r in decodes],
        num_drafts=sum(r.num_draft_tokens for r in reports),
        num_accepted=sum(r.num_accepted_tokens for r in reports),
        num_verifications=sum(r.num_verifications for r in reports),
        tokens=[finished[i] for i in ids],
    )


def texts(kind: str) -> list[str]:
    """Held-out files, or the longest docstrings in them."""
    with open(ASSETS / "heldout.jsonl", encoding="utf-8") as lines:
        files = [json.loads(line)["text"] for line in lines]
    if kind == "code":
        return files
    pieces = [piece for text in files for piece in text.split('"""')[1::2]]
    return sorted(pieces, key=len, reverse=True)


def prompts_of(llm: LLM, kind: str, count: int) -> list[list[int]]:
    """Pieces of PROMPT_TOKENS tokens, spread over all texts, or tokens without any order."""
    if kind == "random":
        vocab_size = llm.engine.runner.vocab_size
        made: list[list[int]] = np.random.default_rng(0).integers(2, vocab_size, (count, PROMPT_TOKENS)).tolist()
        return made
    documents = [llm.tokenizer.encode(text) for text in texts(kind)]
    pieces = [d[i : i + PROMPT_TOKENS] for d in documents for i in range(0, len(d) - PROMPT_TOKENS, PROMPT_TOKENS)]
    if len(pieces) < count:
        raise SystemExit(f"bench_speculation: {len(pieces)} prompts of {kind}, {count} are needed: lower --rounds")
    return [pieces[i * len(pieces) // count] for i in range(count)]


def interval(ratios: list[float]) -> tuple[float, float]:
    """Of the median, at 95 %, by order statistics."""
    ordered, n = sorted(ratios), len(ratios)
    k = max(int(binom.ppf(0.025, n, 0.5)) - 1, 0)
    return ordered[k], ordered[n - 1 - k]


def predicted(plain: list[Round], drafting: list[Round]) -> float:
    """By the formula of this file."""
    by_size: dict[int, list[float]] = {}
    for r in plain:
        for size, _, seconds in r.steps:
            by_size.setdefault(size, []).append(seconds)
    sizes = sorted(by_size)
    means = [statistics.fmean(by_size[size]) for size in sizes]
    steps = np.array([step for r in drafting for step in r.steps])
    plain_s = np.interp(steps[:, 0], sizes, means)
    f = 1 - sum(r.steps_s for r in plain) / sum(r.seconds for r in plain)
    return float(1 / (f + (1 - f) * steps[:, 2].sum() / (steps[:, 1] * plain_s / steps[:, 0]).sum()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=16, help="batches of prompts, each served by all")
    parser.add_argument("--batch", type=int, default=1, help="requests at a time")
    parser.add_argument("--text", choices=("code", "prose", "random"), default="code")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a request")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0 drawn drafts change the tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="contestants whose names begin so, separated by commas; `off` is always there")
    args = parser.parse_args()
    chosen = contestants()
    if args.only:
        wanted = ("off", *args.only.split(","))
        chosen = {name: one for name, one in chosen.items() if name.startswith(wanted)}
    torch.set_num_threads(args.threads)
    llms = {
        name: LLM(
            str(ASSETS / "reference-target"),
            speculation=one,
            max_num_seqs=args.batch,
            num_threads=args.threads,
            num_blocks=args.batch * 24,
        )
        for name, one in chosen.items()
    }
    prompts = prompts_of(llms["off"], args.text, args.rounds * args.batch)
    rounds: dict[str, list[Round]] = {name: [] for name in llms}
    for llm in llms.values():
        serve(llm, prompts[: args.batch], 16, args.temperature)
    for i in range(args.rounds):
        batch = prompts[i * args.batch : (i + 1) * args.batch]
        # Each round begins with another one.
        order = list(llms)[i % len(llms) :] + list(llms)[: i % len(llms)]
        for name in order:
            rounds[name].append(serve(llms[name], batch, args.tokens, args.temperature))
    return report(args, rounds)


def report(args: argparse.Namespace, rounds: dict[str, list[Round]]) -> int:
    plain = rounds["off"]
    per_s = statistics.median(args.batch * args.tokens / r.seconds for r in plain)
    step_ms = 1e3 * statistics.median(r.steps_s / r.num_steps for r in plain)
    print(f"{args.text}, temperature {args.temperature:g}, {args.batch} at a time, {args.rounds} rounds, ", end="")
    print(f"{args.threads} threads; without drafts ", end="")
    print(f"{per_s:,.0f} tok/s, {step_ms:.2f} ms a step")
    header = (
        f"{'':18}{'tokens':>8}{'accepted':>10}{'step ms':>9}{'draft':>7}{'speed-up':>10}{'95 %':>15}{'predicted':>11}"
    )
    print(header)
    wrong = 0
    for name, own in rounds.items():
        if name == "off":
            continue
        ratios = [a.seconds / b.seconds for a, b in zip(plain, own, strict=True)]
        others = range(len(own))
        predictions = [
            predicted([plain[j] for j in others if j != i], [own[j] for j in others if j != i]) for i in others
        ]
        low, high = interval(ratios)
        speedup, foretold = statistics.median(ratios), statistics.median(predictions)
        num_verified = max(sum(r.num_verifications for r in own), 1)
        accepted, drafted = sum(r.num_accepted for r in own), max(sum(r.num_drafts for r in own), 1)
        step_ms, draft_ms = (
            1e3 * statistics.median(getattr(r, key) / r.num_steps for r in own) for key in ("steps_s", "draft_s")
        )
        different = sum(a.tokens != b.tokens for a, b in zip(plain, own, strict=True))
        wrong += different if args.temperature == 0 else 0
        print(
            f"{name:18}{1 + accepted / num_verified:8.2f}{100 * accepted / drafted:9.1f}%{step_ms:9.2f}{draft_ms:7.2f}"
            f"{speedup:9.2f}x{f'[{low:.2f}, {high:.2f}]':>15}{foretold:8.2f}x {100 * (foretold / speedup - 1):+3.0f} %"
            f"{f'  {different} rounds with other tokens' if different and args.temperature == 0 else ''}"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
