"""What is noted while a workload runs. It looks between steps only, and takes microseconds there.

Each step is followed by a few sums over its chunks; steps and requests go on to the streams that make tables of them,
which do their work in blocks: where a run is long, a few milliseconds each few hundred thousand tokens. Resident
memory is read from an open file, at most every hundredth of a second; the progress goes to the driver four times a
second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from experiments.fairness import ServiceGap
from experiments.meters import EnergyMeter
from experiments.request_stream import RequestStream
from experiments.roofline import Roofline
from experiments.step_stream import StepStream
from minivllm.engine import Engine
from minivllm.plan import StepPlan, StepReport, StepResult
from minivllm.request import Request
from minivllm.runner.base import Launched, MemoryReport, Runner
from minivllm.simulation.work import step_work

_REPORT_EVERY_S = 0.25
_MEMORY_EVERY_S = 0.01
_ENERGY_EVERY_S = 30.0

# (requests done, requests in all, output tokens a second)
Report = Callable[[int, int, float], None]


class SeenRunner:
    """A runner that remembers its last plan and what was drafted behind them, and is the other runner in
    all else."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.plan: StepPlan | None = None
        # Request id -> drafts that were verified; known when the step is over.
        self.drafted: dict[int, int] = {}

    @property
    def num_blocks(self) -> int:
        return self.runner.num_blocks

    @property
    def num_swap_blocks(self) -> int:
        return self.runner.num_swap_blocks

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
        self.plan = plan
        self.drafted = {}
        launched = self.runner.launch(plan)
        return _SeenLaunch(self, launched) if any(chunk.num_draft_tokens for chunk in plan.others) else launched

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
    """Listens to the measurement.

    Args:
        engine: that runs it, with a `SeenRunner`.
        requests, steps: what becomes of those.
        roofline: counts steps; None where there is nothing to count.
        meter: of energy, looked at now and then so that it does not wrap around unseen.
        report: told of the progress.
        total: requests in all.
        looks_at_memory: False in a simulation, whose memory is nobody's.
    """

    def __init__(
        self,
        engine: Engine,
        requests: RequestStream,
        steps: StepStream,
        *,
        roofline: Roofline | None,
        meter: EnergyMeter,
        report: Report,
        total: int,
        looks_at_memory: bool = True,
    ) -> None:
        assert isinstance(engine.runner, SeenRunner)
        self._runner, self._requests, self._steps = engine.runner, requests, steps
        self._roofline, self._meter = roofline, meter
        self._report, self._total = report, total
        self._gap = ServiceGap(engine)
        self._memory = ResidentMemory() if looks_at_memory else None
        self._num_tokens = self._num_done = self._reported_tokens = 0
        self._started_s = time.perf_counter()
        self._reported_s = self._metered_s = self._started_s
        self._remembered_s: float | None = None

    def on_sent(self, request_ids: tuple[int, ...], client_id: int) -> None:
        self._gap.on_sent(request_ids, client_id)

    def on_request(self, request: Request, lateness_s: float | None) -> None:
        self._num_done += 1
        self._gap.on_finish(request)
        self._requests.add(request, lateness_s)

    def on_step(self, report: StepReport) -> None:
        seen, now_s = self._runner, time.perf_counter()
        assert seen.plan is not None
        # A token each, and what was accepted: near enough for a speed that is shown while it runs.
        self._num_tokens += len(report.emitted) + report.num_accepted_tokens
        counted = None if self._roofline is None else self._roofline.count(seen.plan.chunks, seen.drafted)
        self._steps.add(
            report,
            step_work(seen.plan, seen.drafted),
            self._process_bytes(now_s),
            None if counted is None else counted.num_bytes,
            None if counted is None else counted.num_flops,
        )
        self._gap.on_step(seen.plan, report)
        if now_s - self._metered_s >= _ENERGY_EVERY_S:
            self._meter.sample()
            self._metered_s = now_s
        since_s = now_s - self._reported_s
        if since_s >= _REPORT_EVERY_S:
            self._report(self._num_done, self._total, (self._num_tokens - self._reported_tokens) / since_s)
            self._reported_s, self._reported_tokens = now_s, self._num_tokens

    def _process_bytes(self, now_s: float) -> int | None:
        """Resident memory, where it is time to look."""
        if self._memory is None:
            return None
        if self._remembered_s is not None and now_s - self._remembered_s < _MEMORY_EVERY_S:
            return None
        self._remembered_s = now_s
        return self._memory.num_bytes()

    def run_columns(self) -> dict[str, float | None]:
        """Columns of `runs` that nobody else knows."""
        return {"service_gap_max_tokens": self._gap.largest_tokens}

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
