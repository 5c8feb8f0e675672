"""One decode step kernel by kernel, as the profiler sees it: which of them the time is, and what is between them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_checks.check import Check, Piece
from gpu_checks.engine import release, step_floor_s
from gpu_checks.models import SHAPES, end_all, greedy, make_llm, requests
from torch.profiler import ProfilerActivity, profile

from minivllm import LLM

_STEPS = 20
_MOST_ROWS = 12


def pieces(check: Check) -> Iterator[Piece]:
    for model in SHAPES:
        for batch in (1, 64):
            if not (check.tiny and (model, batch) != ("Qwen3-0.6B", 1)):
                yield f"profile {model}: batch {batch}", partial(_profile, check, model, batch)


def _profile(check: Check, model: str, batch: int) -> None:
    llm = make_llm(check, model, memory_bytes=2**20 if check.tiny else 16 * 2**30)
    ids = _begin(llm, batch, 4 if check.tiny else 1024)
    steps = 2 if check.tiny else _STEPS
    with profile(activities=[ProfilerActivity.CPU if check.tiny else ProfilerActivity.CUDA]) as profiler:
        reports = [llm.engine.step() for _ in range(steps)]
        if not check.tiny:
            torch.cuda.synchronize()
    wall_us = (reports[-1].start_s + reports[-1].duration_s - reports[0].start_s) / steps * 1e6
    found = [(event.key, event.count, _device_us(event)) for event in profiler.key_averages() if _device_us(event) > 0]
    found.sort(key=lambda one: -one[2])
    busy_us = sum(us for _, _, us in found) / steps
    floor_s = step_floor_s(check, model, batch)
    subject = f"profile {model} batch {batch}"
    check.figure(
        f"{subject}: all kernels of a step", busy_us, "us", floor=None if floor_s is None else floor_s * 1e6,
        detail=f"{sum(count for _, count, _ in found) / steps:.0f} launches; a step takes {wall_us:.0f} us, profiled",
    )  # fmt: skip
    for name, count, us in found[:_MOST_ROWS]:
        share = us / steps / busy_us
        check.figure(
            f"{subject}: {_short(name)}", us / steps, "us",
            detail=f"{count / steps:.0f} launches of {us / count:.2f} us, {share:.1%}",
        )  # fmt: skip
    end_all(llm, ids)
    del llm
    release()


def _begin(llm: LLM, batch: int, context: int) -> list[int]:
    """Requests that all decode, and will for long enough."""
    engine = llm.engine
    batch = min(batch, llm.config.scheduler.max_num_seqs)
    prompts = requests(batch, [context], engine.runner.vocab_size)
    ids = [engine.add_request(prompt["prompt_token_ids"], greedy(_STEPS + 200))[0] for prompt in prompts]
    while True:
        report = engine.step()
        if report.num_decode_tokens == batch and report.num_prefill_tokens == 0:
            break
    for _ in range(5):
        engine.step()
    return ids


def _device_us(event: Any) -> float:
    return float(event.self_device_time_total)


def _short(name: str) -> str:
    """A kernel's name without its namespaces and template arguments; a colon would end the subject."""
    name = name.replace("void ", "").split("<")[0].split("(")[0]
    return name.split("::")[-1][-60:]
