"""Search: try some points of the axes, each chosen by what the ones before gave, for one aim or several at once.

Optuna chooses, by its ask-and-tell interface, and everything else is a sweep: points are composed, run, repeated,
resumed and tabled as ever. Hydra's own Optuna sweeper does not fit in: it launches jobs through Hydra's multirun (one
value that fails validation ends it, and so does a job that crashes), knows nothing of repeats, and its storage, without
which it cannot resume, crashes (hydra-optuna-sweeper 1.3). No storage is needed here: a sampler is a function of its
seed and of what it was asked and told, so a search that is taken up again asks from the beginning, tells what the
tables hold, and comes to where it was. With the same seed and batch size it may be longer the second time; the first
trials stay the same.

Points are composed when they are chosen, since a space may have more of them than could be composed up front.
"""

from __future__ import annotations

import difflib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from experiments import tables
from experiments.axes import Axis, Experiment, read_experiments
from experiments.compose import compose_raw, hydra_config
from experiments.errors import CommandError
from experiments.plan import Job, SweepPlan, arrange, make_job, plan_of
from experiments.progress import Progress
from experiments.sweep import Runner, Swept, opened

SAMPLERS = ("tpe", "nsga2", "random")
# Of the genetic sampler: its first generation is chance, so it must be small beside the number of trials, and it may
# not depend on that number, or a longer search would not begin like a shorter one.
_POPULATION = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """Args:
    sampler: of Optuna: `tpe`, `nsga2`, `random`.
    maximize, minimize: columns of `runs`.
    num_trials: points that are tried, those that come twice counted twice.
    batch_size: points that are chosen together, without knowing each other's results.
    seed: of the sampler.
    """

    sampler: str
    maximize: tuple[str, ...]
    minimize: tuple[str, ...]
    num_trials: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise CommandError(f"search.sampler={self.sampler!r}: must be {', '.join(SAMPLERS)}")
        for key, least in (("num_trials", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise CommandError(f"search.{key}={value!r}: must be a whole number, {least} or more")
        numbers = [f.name for f in tables.RUNS if not pa.types.is_string(f.type) and "." not in f.name]
        for key in ("maximize", "minimize"):
            for metric in getattr(self, key):
                if metric not in numbers:
                    near = difflib.get_close_matches(str(metric), numbers, n=3)
                    hint = f"; did you mean {' or '.join(near)}?" if near else ", such as output_throughput_tps"
                    raise CommandError(f"search.{key}={metric!r}: must be a measured column of runs{hint}")
        if len(set(self.objectives)) < max(1, len(self.maximize) + len(self.minimize)):
            raise CommandError(f"search.maximize={list(self.maximize)}: names a metric, each once; so does minimize")

    @property
    def objectives(self) -> dict[str, Any]:
        """Metric -> direction, as Optuna calls it."""
        return dict.fromkeys(self.maximize, "maximize") | dict.fromkeys(self.minimize, "minimize")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchPlan:
    """A search, before its first trial; `sweep` has no jobs yet."""

    sweep: SweepPlan
    experiment: Experiment
    settings: SearchSettings

    @property
    def num_points(self) -> int:
        return math.prod(len(axis.choices) for axis in self.experiment.axes)

    def jobs(self, chosen: Mapping[str, int]) -> list[Job]:
        """All repeats of a point, by the place of each axis's choice."""
        choices = [axis.choices[chosen[axis.key]] for axis in self.experiment.axes]
        with hydra_config():
            return [make_job(self.experiment.combination(choices, repeat)) for repeat in self.experiment.rounds]


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """What a search left: its rows, and a line for each of the best points, of which none beats another in all aims."""

    swept: Swept
    best: tuple[str, ...]


def plan_search(overrides: Sequence[str], *, default_experiment: str | None = None) -> SearchPlan:
    """Read the space and the settings of a search.

    Raises:
        CommandError: something that does not exist, or nothing to choose from.
    """
    with hydra_config():
        found = read_experiments(overrides, default_experiment=default_experiment)
        if len(found) > 1:
            raise CommandError(f"experiment={','.join(str(e.name) for e in found)}: a search has one experiment")
        (experiment,) = found
        if not any(len(axis.choices) > 1 for axis in experiment.axes):
            raise CommandError("minivllm search: nothing to choose from; sweep a key: key=a,b or key=range(1,9)")
        first = experiment.combination([axis.choices[0] for axis in experiment.axes], 0)
        node = compose_raw(first.overrides)["search"]
        job = make_job(first)
    settings = SearchSettings(**{**node, "maximize": tuple(node.maximize), "minimize": tuple(node.minimize)})
    sweep = plan_of(job.config, [experiment.name] if experiment.name else [], ())
    return SearchPlan(sweep=sweep, experiment=experiment, settings=settings)


def run_search(plan: SearchPlan, progress: Progress, *, report: Callable[[], None]) -> Searched:
    """Run a search, or what is left of it.

    Raises:
        CommandError: Optuna is not installed.
        ResultsError: the results folder cannot be used.
    """
    study = _make_study(plan.settings)
    with opened(plan.sweep, progress) as runner:
        progress.start_search(plan.settings.num_trials, plan.num_points)
        rows = _Search(plan, study, runner, progress).run()
        report()
        runner.finish()
        best = _best(study, plan.settings)
        return Searched(swept=Swept(rows=tuple(rows), tracking_s=tuple(runner.tracking_s)), best=best)


class _Search:
    def __init__(self, plan: SearchPlan, study: Any, runner: Runner, progress: Progress) -> None:
        self._plan, self._study, self._runner, self._progress = plan, study, runner, progress
        self._rows: dict[str, dict[str, Any]] = {}
        # Point id -> its repeats, of all that were tried.
        self._tried: dict[str, list[Job]] = {}

    def run(self) -> list[dict[str, Any]]:
        settings = self._plan.settings
        left = settings.num_trials
        while left and len(self._tried) < self._plan.num_points:
            trials = [self._study.ask() for _ in range(min(left, settings.batch_size))]
            left -= len(trials)
            points = [self._plan.jobs(_choose(trial, self._plan.experiment.axes)) for trial in trials]
            self._run({job.run_id: job for jobs in points for job in jobs if job.point_id not in self._tried})
            for trial, jobs in zip(trials, points, strict=True):
                self._tried[jobs[0].point_id] = jobs
                self._tell(trial, jobs)
        if left:
            self._progress.warn(f"all {self._plan.num_points} points are tried, {left} trials before the last")
        return list(self._rows.values())

    def _run(self, jobs: Mapping[str, Job]) -> None:
        arranged = arrange(jobs.values(), self._plan.sweep.design)
        may_come = self._runner.take_up(arranged)
        complete = len(arranged) - self._runner.num_todo(arranged)
        self._progress.found_more(len(arranged) - may_come, complete, may_come)
        rows = self._runner.run(arranged, tables.column_types(job.config for job in arranged))
        self._rows |= {row["run_id"]: row for row in rows}

    def _tell(self, trial: Any, jobs: Sequence[Job]) -> None:
        """Means over the repeats that ended well; a point without them is one that a sampler learns nothing from."""
        from optuna.trial import TrialState

        rows = [self._rows[job.run_id] for job in jobs if job.run_id in self._rows]
        ok = [row for row in rows if row["status"] == "ok"]
        found: dict[str, list[Any]] = {
            metric: [row.get(metric) for row in ok] for metric in self._plan.settings.objectives
        }
        trial.set_user_attr("label", jobs[0].label)
        trial.set_user_attr("point_id", jobs[0].point_id)
        missing = [metric for metric, values in found.items() if not values or None in values]
        if missing:
            if ok:
                self._progress.warn(
                    f"{jobs[0].label}: {', '.join(missing)} is null, so the search learns nothing of it"
                )
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, [statistics.fmean(values) for values in found.values()])


def _make_study(settings: SearchSettings) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise CommandError("minivllm search: optuna is not installed; pip install 'minivllm[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers: dict[str, Callable[[], Any]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=settings.seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=settings.seed, population_size=_POPULATION),
        "random": lambda: optuna.samplers.RandomSampler(seed=settings.seed),
    }
    return optuna.create_study(directions=[*settings.objectives.values()], sampler=samplers[settings.sampler]())


def _choose(trial: Any, axes: Sequence[Axis]) -> dict[str, int]:
    """The place of each axis's choice. Places of numbers in order have near and far; others are only different."""
    chosen = {}
    for axis in axes:
        last = len(axis.choices) - 1
        if not last:
            chosen[axis.key] = 0
        elif _is_ordered(axis):
            chosen[axis.key] = trial.suggest_int(axis.key, 0, last)
        else:
            chosen[axis.key] = trial.suggest_categorical(axis.key, list(range(last + 1)))
    return chosen


def _is_ordered(axis: Axis) -> bool:
    try:
        values = [float(choice.label.partition("=")[2]) for choice in axis.choices]
    except ValueError:
        return False
    return values == sorted(values)


def _best(study: Any, settings: SearchSettings) -> tuple[str, ...]:
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return ()
    lines: dict[str, str] = {}
    for trial in study.best_trials:
        values = zip(settings.objectives, trial.values, strict=True)
        listed = ", ".join(f"{metric} {value:.6g}" for metric, value in values)
        lines.setdefault(trial.user_attrs["point_id"], f"{trial.user_attrs['label']}: {listed}")
    return tuple(lines.values())
