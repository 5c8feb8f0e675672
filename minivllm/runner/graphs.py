"""Decode steps as CUDA graphs: one launch a step instead of hundreds, so that the device never waits for Python.

A graph replays exactly what was captured, at the addresses that were captured; `DecodeStep` keeps everything at its
place. One graph a batch size and need of sampling, the largest first, so that all of them share one pool of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minivllm.runner.decode import DecodeStep
from minivllm.runner.device_rows import Need


@dataclass(frozen=True, kw_only=True, slots=True)
class _Captured:
    graph: Any
    sampled: Tensor
    # Kept only where somebody may look at them, for what is kept cannot be shared with the other graphs.
    logits: Tensor | None


class DecodeGraphs:
    """All graphs of one engine, captured when it starts.

    Args:
        step: what is captured.
        sizes: batch sizes, ascending.
    """

    def __init__(self, step: DecodeStep, sizes: tuple[int, ...]) -> None:
        self._captured: dict[tuple[int, Need], _Captured] = {}
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        for need in reversed(Need):
            for size in reversed(sizes):
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    # Compiles what is not compiled yet, and makes the libraries' handles and workspaces.
                    step.compute(size, need)
                torch.cuda.current_stream().wait_stream(stream)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                # Not `torch.cuda.graph`, which collects garbage and empties the allocator's cache before each of them.
                with torch.cuda.stream(stream):
                    graph.capture_begin(pool)
                    sampled, logits = step.compute(size, need)
                    graph.capture_end()
                kept = logits if need is Need.ALL else None
                self._captured[size, need] = _Captured(graph=graph, sampled=sampled, logits=kept)
                del logits
        torch.cuda.synchronize()

    def replay(self, size: int, need: Need) -> tuple[Tensor, Tensor | None]:
        """As `DecodeStep.compute`, with logits only where the need is all; the tensors hold until the next replay."""
        captured = self._captured[size, need]
        captured.graph.replay()
        return captured.sampled, captured.logits
