"""What is noted while a workload runs. It looks between steps only, and takes microseconds there.

Each step is followed by a few sums over its chunks. Resident memory is read from an open file, at most every hundredth
of a second; the progress goes to the driver four times a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from experiments.meters import EnergyMeter
from experiments.roofline import Roofline, Work
from minivllm.plan import Chunk, StepPlan, StepResult
from minivllm.runner.base import Launched, MemoryReport, Runner

_REPORT_EVERY_S = 0.25
_MEMORY_EVERY_S = 0.01
_ENERGY_EVERY_S = 30.0

# (requests done, requests in all, output tokens a second)
Report = Callable[[int, int, float], None]


class SeenRunner:
    """A runner that remembers the chunks of its last plan and what was drafted behind them, and is the other runner in
    all else."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.chunks: tuple[Chunk, ...] = ()
        # Request id -> drafts that were verified; known when the step is over.
        self.drafted: dict[int, int] = {}

    @property
    def num_blocks(self) -> int:
        return self.runner.num_blocks

    @property
    def max_model_len(self) -> int:
        return self.runner.max_model_len

    @property
    def vocab_size(self) -> int:
        return self.runner.vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self.runner.eos_token_ids

    def launch(self, plan: StepPlan) -> Launched:
        self.chunks = plan.chunks
        self.drafted = {}
        launched = self.runner.launch(plan)
        return _SeenLaunch(self, launched) if any(chunk.num_draft_tokens for chunk in plan.chunks) else launched

    def memory(self) -> MemoryReport:
        return self.runner.memory()


class _SeenLaunch:
    """A step of which the drafts are looked at when it is over."""

    def __init__(self, seen: SeenRunner, launched: Launched) -> None:
        self._seen, self._launched = seen, launched

    def wait(self) -> StepResult:
        result = self._launched.wait()
        self._seen.drafted = {one.request_id: one.num_draft_tokens for one in result.samples if one.num_draft_tokens}
        return result


class Observer:
    """Called after each step of the measurement.

    Args:
        runner: that runs the steps.
        roofline: counts them; None where there is nothing to count.
        meter: of energy, looked at now and then so that it does not wrap around unseen.
        report: told of the progress.
        total: requests in all.
        looks_at_memory: False in a simulation, whose memory is nobody's.
    """

    def __init__(
        self,
        runner: SeenRunner,
        roofline: Roofline | None,
        meter: EnergyMeter,
        report: Report,
        total: int,
        *,
        looks_at_memory: bool = True,
    ) -> None:
        self._runner, self._roofline, self._meter = runner, roofline, meter
        self._report, self._total = report, total
        self._reported_s = self._remembered_s = self._metered_s = 0.0
        self._reported_tokens = 0
        self._memory = ResidentMemory() if looks_at_memory else None
        # One entry a step.
        self.work: list[Work | None] = []
        self.process_bytes: list[int | None] = []

    def __call__(self, done: int, num_tokens: int, elapsed_s: float) -> None:
        seen = self._runner
        self.work.append(None if self._roofline is None else self._roofline.count(seen.chunks, seen.drafted))
        due = not self.process_bytes or elapsed_s - self._remembered_s >= _MEMORY_EVERY_S
        self.process_bytes.append(self._memory.num_bytes() if due and self._memory is not None else None)
        if due:
            self._remembered_s = elapsed_s
        if elapsed_s - self._metered_s >= _ENERGY_EVERY_S:
            self._meter.sample()
            self._metered_s = elapsed_s
        since_s = elapsed_s - self._reported_s
        if since_s >= _REPORT_EVERY_S:
            self._report(done, self._total, (num_tokens - self._reported_tokens) / since_s)
            self._reported_s, self._reported_tokens = elapsed_s, num_tokens

    def step_columns(self) -> list[dict[str, Any]]:
        """Columns of `steps`, one mapping a step."""
        return [
            {
                "process_bytes": process_bytes,
                "counted_bytes": None if work is None else work.num_bytes,
                "counted_flops": None if work is None else work.num_flops,
            }
            for work, process_bytes in zip(self.work, self.process_bytes, strict=True)
        ]

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()


class ResidentMemory:
    """Resident size of this process, two microseconds a look; None where the system has no /proc."""

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:
            self._file = None
        self._page = os.sysconf("SC_PAGE_SIZE")

    def num_bytes(self) -> int | None:
        if self._file is None:
            return None
        return int(os.pread(self._file, 128, 0).split()[1]) * self._page

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
