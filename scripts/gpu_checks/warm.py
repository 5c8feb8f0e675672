"""Compile what the engines of the figures launch, while checks run anyhow: one layer of each shape launches all that
the whole model does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from gpu_checks.check import Check, Piece
from gpu_checks.models import SHAPES, make_llm


def pieces(check: Check) -> Iterator[Piece]:
    if check.tiny:
        return
    for model in SHAPES:
        yield f"warm: {model}", partial(_start, check, f"warm: {model}", model)
    small = "Qwen3-0.6B"
    for name, options in (("batch_invariant", {"batch_invariant": True}), ("small blocks", {"block_size": 16})):
        yield f"warm: {small} {name}", partial(_start, check, f"warm: {small} {name}", small, **options)


def _start(check: Check, name: str, model: str, **options: Any) -> None:
    begun_s = time.perf_counter()
    make_llm(check, model, one_layer=True, max_num_seqs=256, num_blocks=64, **options)
    check.holds(name, True, f"started in {time.perf_counter() - begun_s:.0f} s beside other work")
