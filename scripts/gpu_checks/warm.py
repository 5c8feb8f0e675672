"""Compile what the engines of the figures launch, while checks run anyhow: one layer of each shape launches all that
the whole model does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from gpu_checks.check import Check, Piece
from gpu_checks.models import SHAPES, make_llm


def pieces(check: Check) -> Iterator[Piece]:
    for invariant in (False, True):
        for model in SHAPES:
            if not check.tiny:
                name = f"warm: {model}" + (" batch_invariant" if invariant else "")
                yield name, partial(_start, check, name, model, invariant)


def _start(check: Check, name: str, model: str, invariant: bool) -> None:
    begun_s = time.perf_counter()
    make_llm(check, model, one_layer=True, max_num_seqs=256, num_blocks=64, batch_invariant=invariant)
    check.holds(name, True, f"started in {time.perf_counter() - begun_s:.0f} s beside other work")
