"""Decode steps as CUDA graphs: one launch a step instead of hundreds, so that the device never waits for Python.

A graph replays exactly what was captured, at the addresses that were captured; `DecodeStep` keeps everything at its
place. One graph a batch size and way of sampling, the largest first, so that all of them share one pool of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minivllm.runner.decode import DecodeStep


@dataclass(frozen=True, kw_only=True, slots=True)
class _Captured:
    graph: Any
    sampled: Tensor
    logits: Tensor


class DecodeGraphs:
    """All graphs of one engine, captured when it starts.

    Args:
        step: what is captured.
        sizes: batch sizes, ascending.
    """

    def __init__(self, step: DecodeStep, sizes: tuple[int, ...]) -> None:
        self._captured: dict[tuple[int, bool], _Captured] = {}
        pool = None
        stream = torch.cuda.Stream()
        for plain in (False, True):
            for size in reversed(sizes):
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    # Compiles what is not compiled yet, and makes the libraries' handles and workspaces.
                    step.compute(size, plain)
                torch.cuda.current_stream().wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    sampled, logits = step.compute(size, plain)
                pool = pool or graph.pool()
                self._captured[size, plain] = _Captured(graph=graph, sampled=sampled, logits=logits)
        torch.cuda.synchronize()

    def replay(self, size: int, plain: bool) -> tuple[Tensor, Tensor]:
        """As `DecodeStep.compute`; the tensors hold until the next replay."""
        captured = self._captured[size, plain]
        captured.graph.replay()
        return captured.sampled, captured.logits
