"""Step times by regression on a real run: what this machine would take, for loads that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.step_times.records import WORK, read_runs, work_row
from experiments.step_times.regression import LINEAR, Errors, Prices, cross_validate, fit
from minivllm.component import require
from minivllm.simulation.base import StepTimeTarget, StepWork

# Beyond this many times of what was measured, a line through it is a guess.
_REACH = 1.5
_FEWEST_STEPS = 100


class Fitted:
    """Prices of a step's parts (see `regression`), from the tables of a sweep.

    Args:
        target: what is simulated; it must be what was measured.
        folder: of the sweep.
        run_ids: which of its runs; all real ones that ended well where None.

    Attributes:
        error_fraction: mean absolute error of a step over the mean step, cross-validated.
        total_error_fraction: the same of sums over whole runs (over tenths of it where there is only one).

    Raises:
        ValueError: no such runs, too few steps, or runs of something else.
    """

    def __init__(self, *, target: StepTimeTarget, folder: str, run_ids: Sequence[str] | str | None = None) -> None:
        runs = read_runs(folder, run_ids, target)
        work, step_s = np.concatenate([run.work for run in runs]), np.concatenate([run.step_s for run in runs])
        enough = f"one with {_FEWEST_STEPS} busy steps or more: there are {len(step_s)}"
        require(len(step_s) >= _FEWEST_STEPS, "step_time.folder", folder, enough)
        self.prices: Prices = fit(work, step_s)
        self.errors: Errors = cross_validate(runs)
        self.error_fraction = self.errors.step_fraction
        self.total_error_fraction = self.errors.total_fraction
        self._folder = folder
        tokens = work[:, 0] + work[:, 1]
        self._fewest, self._most = float(tokens.min()) / _REACH, float(tokens.max()) * _REACH
        self._limits = tuple((work.max(axis=0) * _REACH).tolist())
        # Constant and tokens, by the number of tokens.
        counts = np.arange(int(self._most) + 1)
        table = np.zeros((len(counts), len(WORK)))
        table[:, 0] = counts
        self._by_tokens: list[float] = self.prices.predict(table).tolist()
        by_name = dict(zip(LINEAR, self.prices.each_s, strict=True))
        self._each_s = tuple(by_name.get(name, 0.0) for name in WORK)

    def step_s(self, work: StepWork) -> float:
        num_tokens = work.num_tokens
        if not self._fewest <= num_tokens <= self._most:
            self._refuse("num_tokens", num_tokens, f"{self._fewest * _REACH:g} to {self._most / _REACH:g}")
        total_s = self._by_tokens[num_tokens]
        for name, value, limit, price in zip(WORK, work_row(work), self._limits, self._each_s, strict=True):
            if value > limit:
                self._refuse(name, value, f"up to {limit / _REACH:g}")
            total_s += price * value
        return total_s

    def _refuse(self, name: str, value: float, measured: str) -> None:
        raise ValueError(
            f"step_time.folder={self._folder!r}: a step has {name}={value:g}, and was measured with {measured}: "
            "too far off; fit on a run with a load like this one"
        )
