"""Parts that go wrong, and parts from outside: for tests only, plugged in by import path."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from experiments import measurement
from experiments.workloads.base import Streams, WorkloadItem
from experiments.workloads.closed_loop import ClosedLoop
from experiments.workloads.prompts import PromptSource
from minivllm.attention.torch_backend import TorchAttention
from minivllm.engine import Engine
from minivllm.request import RequestView
from minivllm.scheduler.base import SchedulerState, SchedulingPolicy


class Raises(SchedulingPolicy):
    """Raises in its third step, in two lines."""

    def __init__(self) -> None:
        self._steps = 0

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        self._steps += 1
        if self._steps == 3:
            print("about to fail")
            raise RuntimeError("the third step\nis one too many")
        return super().order(state, now_s)


class Segfaults(SchedulingPolicy):
    """Reads address 0."""

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        ctypes.string_at(0)
        return super().order(state, now_s)


class KilledForMemory(SchedulingPolicy):
    """Ends as the kernel ends a process when memory is short."""

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().order(state, now_s)


class KillsItsJob(SchedulingPolicy):
    """Ends the process that started the fork server, and so itself: of a cluster, its job."""

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGKILL)
        time.sleep(3600)
        return super().order(state, now_s)


class FillsTheDisk(SchedulingPolicy):
    """From here on no file may grow past a hundred bytes, as on a full disk."""

    def __init__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


class Exits(SchedulingPolicy):
    """Leaves the process."""

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        sys.exit(7)


class Hangs(SchedulingPolicy):
    """Never comes back."""

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        time.sleep(3600)
        return super().order(state, now_s)


class Sloth(SchedulingPolicy):
    """A hundredth of a second a step, so that a run takes long enough to be hit in its middle."""

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        time.sleep(0.01)
        return super().order(state, now_s)


class Paced(SchedulingPolicy):
    """Sleeps in each step: `step_s`, and in every second run `swing` times as much on top.

    It knows its runs by the lines of a file. With `drift`, each run sleeps by that part longer than the one before.
    """

    def __init__(self, step_s: float, notes: str, swing: float = 0.0, drift: float = 0.0) -> None:
        path = Path(f"{notes}-{swing}")
        number = len(path.read_text()) if path.exists() else 0
        with path.open("a") as file:
            file.write(".")
        self._step_s = step_s * (1 + swing * (number % 2)) * (1 + drift) ** number

    def order(self, state: SchedulerState, now_s: float) -> Sequence[RequestView]:
        time.sleep(self._step_s)
        return super().order(state, now_s)


class Picky(SchedulingPolicy):
    """Takes one argument, above 0."""

    def __init__(self, alpha: float) -> None:
        if alpha <= 0:
            raise ValueError(f"scheduler.alpha={alpha!r}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class WarmsUpOnMeasured(ClosedLoop):
    """A workload whose warm-up runs the measured prompts. Its process ends with its run, and so does the damage.

    Args:
        keep_cache: leave in the prefix cache what the warm-up put there.
    """

    keep_cache: bool

    def items(self, streams: Streams, source: PromptSource) -> list[WorkloadItem]:
        def measured(items: Sequence[WorkloadItem], count: int, *_: Any) -> list[WorkloadItem]:
            return list(items[:count])

        measurement.warmup_items = measured
        if self.keep_cache:
            Engine.reset_prefix_cache = lambda self: None
        return super().items(streams, source)


class NanAttention(TorchAttention):
    """A backend whose results are no numbers."""

    def attend(self, q: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        return torch.full_like(super().attend(q, *rest, **more), float("nan"))


class CoarseAttention(TorchAttention):
    """A lossy backend: queries, keys and values in steps of an eighth."""

    def attend(self, qkv: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        return super().attend(qkv.mul(8).round_().div_(8), *rest, **more)
