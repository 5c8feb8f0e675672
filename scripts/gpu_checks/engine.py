"""The engine in steady decode: what a step takes against the bytes that it must read, and what CUDA graphs, overlap,
prefix caching and batch invariance change. Random weights, bfloat16, greedy, context about 1k."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from gpu_checks.check import Check, Piece
from gpu_checks.models import SHAPES, decode_steps, greedy, make_llm, num_parameters, requests

from minivllm import LLM

_SMALL, _LARGE = "Qwen3-0.6B", "Qwen3-8B"
_CONTEXT = 1024
# Of the K/V pool, where two engines share the GPU.
_POOL_BYTES = 16 * 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Steady:
    """Decode steps, one after the other.

    Args:
        step_s: wall time of all, divided by their number.
        median_s, longest_s: of single steps.
        idle: share of the wall time in which the device did nothing of a step; None where it is not told.
        num_compilations: kernels made ready meanwhile.
    """

    step_s: float
    median_s: float
    longest_s: float
    idle: float | None
    num_compilations: int

    @property
    def words(self) -> str:
        idle = "" if self.idle is None else f", device idle {self.idle:.1%}"
        step_ms, median_ms, longest_ms = (f"{s * 1e3:.3g}" for s in (self.step_s, self.median_s, self.longest_s))
        return f"step {step_ms} ms, median {median_ms}, longest {longest_ms}{idle}"


def measure(check: Check, llm: LLM, batch: int, num_steps: int = 200) -> Steady:
    """Of one batch size; a row says if a kernel was compiled while it was measured."""
    context, num_steps = (6, 2) if check.tiny else (_CONTEXT, num_steps)
    batch = min(batch, llm.config.scheduler.max_num_seqs)
    steps = decode_steps(llm, batch, context, num_steps, warm_up=1 if check.tiny else 12)
    wall_s = steps[-1].start_s + steps[-1].duration_s - steps[0].start_s
    busy = [step.device_s for step in steps]
    found = Steady(
        step_s=wall_s / len(steps),
        median_s=statistics.median(step.duration_s for step in steps),
        longest_s=max(step.duration_s for step in steps),
        idle=None if None in busy else 1 - sum(busy) / wall_s,  # type: ignore[arg-type]
        num_compilations=sum(step.num_compilations for step in steps),
    )
    return found


def step_floor_s(check: Check, model: str, batch: int, context: int = _CONTEXT) -> float | None:
    """Seconds to read all weights, and the K/V of the batch, once: all in two bytes."""
    weights, kv = num_parameters(SHAPES[model])
    time_ms = check.bytes_ms(2 * (weights + batch * context * kv))
    return None if time_ms is None else time_ms / 1e3


def release() -> None:
    """Give the GPU back what engines held that nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Engines:
    """Base engines of this section, each made once and only if a piece wants it."""

    def __init__(self, check: Check) -> None:
        self._check = check

    def make(self, model: str = _SMALL, **options: Any) -> LLM:
        return make_llm(self._check, model, **({"memory_bytes": _POOL_BYTES} | options))

    @cached_property
    def small(self) -> LLM:
        return self.make()


def pieces(check: Check) -> Iterator[Piece]:
    engines = _Engines(check)
    yield (
        f"engine {_SMALL}: steady decode",
        partial(_steady, check, _SMALL, lambda: engines.small, (1, 64) if check.tiny else (1, 8, 64)),
    )
    yield (
        "engine: CUDA graphs",
        partial(_compare, check, engines, "CUDA graphs on against off, batch 1", 1, {"cuda_graphs": False}, 2.5),
    )
    yield (
        "engine: overlap",
        partial(_compare, check, engines, "overlap on against off, batch 64", 64, {"overlap": False}, 1.05),
    )
    yield "engine: batch invariance", partial(_invariant, check, engines)
    yield "engine: prefix cache", partial(_prefix_cache, check, engines)
    if not check.tiny:
        yield f"engine {_LARGE}: steady decode", partial(_large, check, engines)


def _report(check: Check, name: str, found: Steady) -> None:
    compiled = found.num_compilations
    check.holds(f"engine compilations: {name}", compiled == 0, f"{compiled} while measured" if compiled else "")


_AIMS = {(_SMALL, 1): (1000.0, "vLLM on an A100: 238"), (_LARGE, 1): (200.0, "SGLang: 187")}


def _steady(check: Check, model: str, make: Callable[[], LLM], batches: tuple[int, ...]) -> None:
    llm = make()
    for batch in batches:
        found = measure(check, llm, batch)
        _report(check, f"{model} batch {batch}", found)
        floor_s = step_floor_s(check, model, batch)
        aim, reference = _AIMS.get((model, batch), (None, ""))
        check.figure(
            f"engine {model}: batch {batch}, context 1k", batch / found.step_s, "tok/s",
            floor=None if floor_s is None else batch / floor_s, aim=aim, reference=reference, detail=found.words,
        )  # fmt: skip
        if batch == 64:
            check.figure(f"engine {model}: device idle, batch 64", found.idle, "of the time", aim=0.03)


def _large(check: Check, engines: _Engines) -> None:
    # The small engines' memory first.
    engines.__dict__.pop("small", None)
    release()
    _steady(check, _LARGE, lambda: engines.make(_LARGE), (1, 32))


def _compare(check: Check, engines: _Engines, name: str, batch: int, without: dict[str, Any], aim: float) -> None:
    """Twice each, in turn, the better of both: what differs is the option and not the minute."""
    other = engines.make(**without)
    times: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(1 if check.tiny else 2):
        for key, llm in (("with", engines.small), ("without", other)):
            found = measure(check, llm, batch, num_steps=100)
            times[key].append(found.step_s)
            _report(check, f"{name}, {key}", found)
    on, off = min(times["with"]), min(times["without"])
    check.figure(f"engine: {name}", off / on, "x", aim=aim, detail=f"{on * 1e3:.3g} and {off * 1e3:.3g} ms a step")
    del other
    release()


def _invariant(check: Check, engines: _Engines) -> None:
    other = engines.make(batch_invariant=True)
    for batch in (64,) if check.tiny else (1, 64):
        fast, slow = measure(check, engines.small, batch, 100), measure(check, other, batch, 100)
        check.figure(
            f"engine: batch_invariant on, of the speed without, batch {batch}", fast.step_s / slow.step_s, "x",
            detail=f"{slow.step_s * 1e3:.3g} and {fast.step_s * 1e3:.3g} ms a step",
        )  # fmt: skip
    del other
    release()


def _prefix_cache(check: Check, engines: _Engines) -> None:
    """Prompts that share nothing, through engines with and without it, in turn: the ratio of the medians. Small blocks,
    as each full block costs a hash."""
    num, length, max_tokens, turns = (2, 9, 2, 1) if check.tiny else (128, 512, 64, 4)
    on, off = engines.make(block_size=16), engines.make(block_size=16, prefix_caching=False)
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(turns + 1):
        prompts = requests(num, [length], on.engine.runner.vocab_size, seed=turn)
        for cached, llm in ((True, on), (False, off)):
            begun_s = time.perf_counter()
            outputs = llm.generate(prompts, greedy(max_tokens))
            assert not any(output.num_cached_tokens for output in outputs), "prompts that share something"
            # The first turn warms up.
            if turn:
                times[cached].append(time.perf_counter() - begun_s)
    cost = statistics.median(times[True]) / statistics.median(times[False]) - 1 if times[True] else None
    spread = max(times[False]) / min(times[False]) - 1 if times[False] else 0.0
    check.figure(
        "engine: prefix cache on without a hit", cost, "of the time", aim=0.01,
        detail=f"{num} prompts of {length}, {max_tokens} more tokens; without it, tries differ by {spread:.1%}",
    )  # fmt: skip
    del on, off
    release()
