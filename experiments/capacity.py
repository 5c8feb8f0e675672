"""Capacity: the highest rate of arrivals at which a point still meets its limits, for every point of the axes.

Every point begins at the same rate. It is doubled while the limits are met, or halved while they are not, until one
rate of each kind is known; then the interval between the two is halved until it is narrow enough. That a rate which is
met lies under one that is not is taken for granted: with few requests, chance decides near the border, so that a
capacity is worth as much as its runs are long and its repeats are many.

What a rate gave is a run like any other, composed, run, repeated, resumed and tabled as ever; the next rate depends on
those alone, so that a search which is taken up again comes to where it was. `capacity/capacity.parquet` in the folder
of the sweep has a row for every rate that a point tried, with the `cfg.*` columns of its runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from experiments import tables
from experiments.axes import Combination, Experiment, read_experiments
from experiments.compose import compose_raw, hydra_config
from experiments.errors import CommandError
from experiments.plan import Job, SweepPlan, arrange, make_job, plan_of
from experiments.progress import Progress
from experiments.sweep import Runner, Swept, opened

# One row is a rate that a point tried. is_capacity: the highest that met the limits, where a higher one did not.
SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.int64()),
        pa.field("sweep", pa.string()),
        pa.field("label", pa.string()),
        pa.field("point_id", pa.string()),
        pa.field("rate_rps", pa.float64()),
        pa.field("num_repeats", pa.int64()),
        pa.field("slo_attainment_fraction", pa.float64()),
        pa.field("target_attainment_fraction", pa.float64()),
        pa.field("meets_target", pa.bool_()),
        pa.field("is_capacity", pa.bool_()),
    ]
)
# Rates have as many digits as a person can read; others would be other points.
_DIGITS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class CapacitySettings:
    """Args:
    rate_key: of the arrival rate.
    target_attainment: least `slo_attainment_fraction`, mean over repeats.
    start_rate_rps: where every point begins.
    relative_tolerance: width of the last interval, over its lower end.
    max_tries: rates that a point tries at most.
    """

    rate_key: str
    target_attainment: float
    start_rate_rps: float
    relative_tolerance: float
    max_tries: int

    def __post_init__(self) -> None:
        for key, highest in (("target_attainment", 1.0), ("start_rate_rps", 1e9), ("relative_tolerance", 1.0)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= highest:
                raise CommandError(f"capacity.{key}={value!r}: must be above 0, and {highest:g} or less")
        if isinstance(self.max_tries, bool) or not isinstance(self.max_tries, int) or self.max_tries < 1:
            raise CommandError(f"capacity.max_tries={self.max_tries!r}: must be a whole number, 1 or more")
        if self.relative_tolerance < 10 ** (2 - _DIGITS):
            least = 10 ** (2 - _DIGITS)
            raise CommandError(f"capacity.relative_tolerance={self.relative_tolerance!r}: must be {least:g} or more")


class Bisection:
    """Which rate to try next. Knows nothing of what is measured."""

    def __init__(self, settings: CapacitySettings) -> None:
        self._settings = settings
        self.num_tries = 0
        # The highest rate that was met, and the lowest that was not.
        self.met_rps: float | None = None
        self.failed_rps: float | None = None

    def next_rps(self) -> float | None:
        """None where the border is known well enough, or all tries are used up."""
        met, failed, settings = self.met_rps, self.failed_rps, self._settings
        if self.num_tries == settings.max_tries:
            return None
        if met is not None and failed is not None:
            if failed <= met * (1 + settings.relative_tolerance):
                return None
            return _rounded((met + failed) / 2)
        if met is not None:
            return _rounded(met * 2)
        return _rounded(settings.start_rate_rps if failed is None else failed / 2)

    def tell(self, rate_rps: float, met: bool) -> None:
        self.num_tries += 1
        if met:
            self.met_rps = rate_rps
        else:
            self.failed_rps = rate_rps

    @property
    def is_known(self) -> bool:
        return self.met_rps is not None and self.failed_rps is not None


def _rounded(rate_rps: float) -> float:
    return float(f"{rate_rps:.{_DIGITS}g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CapacityPlan:
    """A search for capacities, before its first run; `sweep` has no jobs yet."""

    sweep: SweepPlan
    experiment: Experiment
    settings: CapacitySettings
    # Of the first repeat, without a rate.
    points: tuple[Combination, ...]

    def jobs(self, point: Combination, rate_rps: float) -> list[Job]:
        """All repeats of a point at a rate."""
        rate = f"{self.settings.rate_key}={rate_rps:g}"
        label = " ".join(filter(None, (point.label, f"{rate_rps:g} rps")))
        overrides = (*point.overrides, rate)
        with hydra_config():
            return [
                make_job(dataclasses.replace(point, overrides=overrides, label=label, repeat=repeat))
                for repeat in self.experiment.rounds
            ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacities:
    """What a search left: its rows, and a line for each point."""

    swept: Swept
    lines: tuple[str, ...]


def plan_capacity(overrides: Sequence[str], *, default_experiment: str | None = None) -> CapacityPlan:
    """Read points and settings.

    Raises:
        CommandError: something that does not exist, no limits to meet, or a rate that is given twice.
    """
    with hydra_config():
        found = read_experiments(overrides, default_experiment=default_experiment)
        if len(found) > 1:
            raise CommandError(f"experiment={','.join(str(e.name) for e in found)}: capacity has one experiment")
        (experiment,) = found
        chosen = itertools.product(*(axis.choices for axis in experiment.axes))
        points = tuple(experiment.combination(choices, experiment.rounds[0]) for choices in chosen)
        settings = CapacitySettings(**compose_raw(points[0].overrides)["capacity"])
        key = settings.rate_key
        # +key hands a rate to a class whose YAML has none.
        if any(axis.key == key.lstrip("+") for axis in experiment.axes):
            raise CommandError(f"{key}: is what capacity looks for, so it is no axis; capacity.rate_key names another")
        if experiment.rule.metric is not None:
            raise CommandError("repeat_until.relative_half_width: capacity repeats each rate as often: set repeats")
        first = dataclasses.replace(
            points[0], overrides=(*points[0].overrides, f"{key}={_rounded(settings.start_rate_rps):g}")
        )
        job = make_job(first)
        slo = job.config["slo"]
        if all(limit is None for limit in slo.values()):
            raise CommandError("slo=none: has no limits to meet; choose one, such as slo=llama3_1_8b_server")
        if job.config["workload"].get("concurrency") is not None:
            raise CommandError(
                f"workload.concurrency={job.config['workload']['concurrency']}: a closed loop has no rate; "
                "set workload.concurrency=null, or choose a workload that comes by the clock"
            )
    sweep = plan_of(job.config, [experiment.name] if experiment.name else [], ())
    return CapacityPlan(sweep=sweep, experiment=experiment, settings=settings, points=points)


def run_capacity(plan: CapacityPlan, progress: Progress, *, report: Callable[[], None]) -> Capacities:
    """Run a search, or what is left of it.

    Raises:
        ResultsError: the results folder cannot be used.
    """
    with opened(plan.sweep, progress) as runner:
        progress.start_capacity(len(plan.points), plan.settings.rate_key)
        search = _Search(plan, runner, progress)
        rows = search.run()
        tables.write_table(plan.sweep.folder / "capacity" / "capacity.parquet", search.table())
        report()
        runner.finish()
        swept = Swept(rows=tuple(rows), tracking_s=tuple(runner.tracking_s))
        return Capacities(swept=swept, lines=tuple(search.lines()))


class _Search:
    def __init__(self, plan: CapacityPlan, runner: Runner, progress: Progress) -> None:
        self._plan, self._runner, self._progress = plan, runner, progress
        self._rows: dict[str, dict[str, Any]] = {}
        self._bisections = [Bisection(plan.settings) for _ in plan.points]
        # Of each point: what a rate gave, and the jobs that it was.
        self._tries: list[list[tuple[dict[str, Any], Job]]] = [[] for _ in plan.points]
        self._broken: set[int] = set()

    def run(self) -> list[dict[str, Any]]:
        """Points go on together, so that those which run at one time, or one after the other, are comparable."""
        while True:
            asked: dict[int, tuple[float, list[Job]]] = {}
            for i, (point, bisection) in enumerate(zip(self._plan.points, self._bisections, strict=True)):
                rate_rps = None if i in self._broken else bisection.next_rps()
                if rate_rps is not None:
                    asked[i] = rate_rps, self._plan.jobs(point, rate_rps)
            if not asked:
                return list(self._rows.values())
            self._run({job.run_id: job for _, jobs in asked.values() for job in jobs})
            for i, (rate_rps, jobs) in asked.items():
                self._tell(i, rate_rps, jobs)

    def _run(self, jobs: Mapping[str, Job]) -> None:
        arranged = arrange(jobs.values(), self._plan.sweep.design)
        self._runner.take_up(arranged)
        self._progress.found_more(len(arranged), len(arranged) - self._runner.num_todo(arranged))
        rows = self._runner.run(arranged, tables.column_types(job.config for job in arranged))
        self._rows |= {row["run_id"]: row for row in rows}

    def _tell(self, i: int, rate_rps: float, jobs: Sequence[Job]) -> None:
        rows = [self._rows[job.run_id] for job in jobs]
        failed = [row for row in rows if row["status"] != "ok"]
        if failed:
            # A rate that cannot be measured says nothing about another.
            self._broken.add(i)
            self._progress.warn(f"{jobs[0].label}: {failed[0]['status']}, so the capacity of this point stays unknown")
            return
        attained = statistics.fmean(row["slo_attainment_fraction"] for row in rows)
        met = attained >= self._plan.settings.target_attainment
        self._bisections[i].tell(rate_rps, met)
        tried = {"rate_rps": rate_rps, "slo_attainment_fraction": attained, "meets_target": met}
        self._tries[i].append((tried | {"num_repeats": len(rows)}, jobs[0]))

    def table(self) -> pa.Table:
        """A row for every rate that a point tried."""
        types = tables.column_types(job.config for tries in self._tries for _, job in tries)
        made = []
        for i, (point, bisection) in enumerate(zip(self._plan.points, self._bisections, strict=True)):
            known = bisection.is_known and i not in self._broken
            for tried, job in self._tries[i]:
                row = tried | {
                    "schema_version": tables.SCHEMA_VERSION,
                    "sweep": self._plan.sweep.name,
                    "label": point.label,
                    "point_id": job.point_id,
                    "target_attainment_fraction": self._plan.settings.target_attainment,
                    "is_capacity": known and tried["rate_rps"] == bisection.met_rps,
                }
                made.append(tables.table_with_config(row, SCHEMA, job.config, types))
        return pa.concat_tables(made) if made else SCHEMA.empty_table()

    def lines(self) -> list[str]:
        """What is known of each point, for a person."""
        found = []
        for i, (point, bisection) in enumerate(zip(self._plan.points, self._bisections, strict=True)):
            met, failed = bisection.met_rps, bisection.failed_rps
            if i in self._broken:
                what = "unknown: a run failed"
            elif met is None:
                what = f"below {failed:g} rps, the lowest that was tried"
            elif failed is None:
                what = f"{met:g} rps or more, the highest that was tried"
            else:
                attained = next(t["slo_attainment_fraction"] for t, _ in self._tries[i] if t["rate_rps"] == met)
                what = f"{met:g} rps ({attained:.2%} within the limits; {failed:g} rps is too much)"
            found.append(f"{point.label or self._plan.sweep.name}: {what}")
        return found
