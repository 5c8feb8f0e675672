"""Steps as CUDA graphs: one launch a step instead of hundreds, so that the device never waits for Python.

A graph replays exactly what was captured, at the addresses that were captured; `DecodeStep` and `VerifyStep` keep
everything at its place. One graph a batch size and need of sampling, and where drafts are verified a number of them;
the largest first, so that all of them share one pool of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minivllm.runner.decode import DecodeStep
from minivllm.runner.device_rows import Need
from minivllm.runner.verify_step import VerifyStep


@dataclass(frozen=True, kw_only=True, slots=True)
class _Captured:
    graph: Any
    sampled: Tensor
    # Kept only where somebody may look at them, for what is kept cannot be shared with the other graphs.
    logits: Tensor | None


class Recorder:
    """Captures graphs into one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def capture(self, compute: Callable[[], tuple[Tensor, Tensor]], *, keep_logits: bool) -> _Captured:
        """What `compute` launches: sampled tokens and logits."""
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Compiles what is not compiled yet, and makes the libraries' handles and workspaces.
            compute()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Not `torch.cuda.graph`, which collects garbage and empties the allocator's cache before each of them.
        with torch.cuda.stream(stream):
            graph.capture_begin(self._pool)
            sampled, logits = compute()
            graph.capture_end()
        return _Captured(graph=graph, sampled=sampled, logits=logits if keep_logits else None)


def _looks_at_logits(need: Need | None) -> bool:
    return need is None or need is Need.ALL


class DecodeGraphs:
    """All graphs of decode steps, captured when an engine starts.

    Args:
        step: what is captured.
        sizes: batch sizes, ascending.
        needs: of sampling; None samples nothing.
        recorder: what captures.
    """

    def __init__(
        self, step: DecodeStep, sizes: Sequence[int], needs: Sequence[Need | None], recorder: Recorder
    ) -> None:
        self._captured = {
            (size, need): recorder.capture(partial(step.compute, size, need), keep_logits=_looks_at_logits(need))
            for need in needs
            for size in reversed(sizes)
        }
        torch.cuda.synchronize()

    def replay(self, size: int, need: Need | None) -> tuple[Tensor, Tensor | None]:
        """As `DecodeStep.compute`, with logits only where the need is all or None; the tensors hold until the next
        replay."""
        captured = self._captured[size, need]
        captured.graph.replay()
        return captured.sampled, captured.logits


class VerifyGraphs:
    """All graphs of verifications.

    Args:
        step: what is captured.
        sizes: batch sizes, ascending.
        counts: numbers of drafts, ascending.
        needs, recorder: as above.
    """

    def __init__(
        self,
        step: VerifyStep,
        sizes: Sequence[int],
        counts: Sequence[int],
        needs: Sequence[Need | None],
        recorder: Recorder,
    ) -> None:
        self._captured = {
            (size, count, need): recorder.capture(
                partial(step.compute, size, count, need), keep_logits=_looks_at_logits(need)
            )
            for need in needs
            for count in reversed(counts)
            for size in reversed(sizes)
        }
        torch.cuda.synchronize()

    def replay(self, size: int, num_drafts: int, need: Need | None) -> tuple[Tensor, Tensor | None]:
        """As `VerifyStep.compute`, else as above."""
        captured = self._captured[size, num_drafts, need]
        captured.graph.replay()
        return captured.sampled, captured.logits
