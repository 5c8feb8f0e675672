"""The step times of a recorded run, in its order: the same run again, to see what the rest of the house adds."""

from __future__ import annotations

from experiments.step_times.records import WORK, read_runs, work_row
from minivllm.component import require
from minivllm.simulation.base import StepTimeTarget, StepWork


class Replay:
    """As long as each step computes what the recorded one did.

    Args:
        target: what is simulated; it must be what was measured.
        folder: of the sweep.
        run_id: of the run; where None, there must be only one real one that ended well.

    Raises:
        ValueError: no such run.
    """

    def __init__(self, *, target: StepTimeTarget, folder: str, run_id: str | None = None) -> None:
        runs = read_runs(folder, run_id, target)
        names = ", ".join(run.run_id for run in runs)
        require(len(runs) == 1, "step_time.run_id", run_id, f"one of {names}")
        self._run_id = runs[0].run_id
        self._work = [tuple(map(int, row)) for row in runs[0].work.tolist()]
        self._step_s = runs[0].step_s.tolist()
        self._place = 0

    def step_s(self, work: StepWork) -> float:
        place, values = self._place, work_row(work)
        where = f"step_time.run_id={self._run_id!r}: step {place + 1}"
        if place == len(self._step_s):
            raise ValueError(f"{where}: the recording has {place}: this run is longer; replay the same load and policy")
        if values != self._work[place]:
            name, there, here = next(
                (n, a, b) for n, a, b in zip(WORK, self._work[place], values, strict=True) if a != b
            )
            raise ValueError(
                f"{where}: {name} was {there} and is {here}: this run goes another way; replay the same load and "
                "policy, or choose step_time=fitted"
            )
        self._place += 1
        return float(self._step_s[place])
