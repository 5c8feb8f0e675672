"""A command line made into jobs: every point composed, resolved and named before the first one runs.

Hydra composes lazily at launch, so that editing a YAML during a sweep changes its later points; here the configs are
frozen first.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.axes import PLANNING, Combination, expand
from experiments.compose import compose_config, hydra_config
from experiments.errors import CommandError, one_line
from experiments.points import freeze, point_id, run_id
from experiments.repeats import Repeats
from minivllm.config import Component

ORDERS = ("rotated", "shuffled", "as_given")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One repeat of one point."""

    run_id: str
    point_id: str
    repeat: int
    label: str
    # Resolved, plain values.
    config: dict[str, Any]
    repeats: Repeats
    # Runs in any case, and not only where the earlier repeats of its point leave it too uncertain.
    needed: bool
    # Why the frozen configs refuse it; then it is a row, and does not run.
    invalid: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """How a sweep goes about its runs: in which order, and with what between them.

    Args:
        order: of the points within a repeat: `rotated` starts each repeat at another point, `shuffled` draws an order
            for each, `as_given` keeps that of the axes.
        order_seed: of `shuffled`.
        cool_down_s: seconds of rest before each run but the first.
        measure_peaks: whether the machine's bandwidth and arithmetic are measured first, for MBU and MFU.
    """

    order: str
    order_seed: int
    cool_down_s: float
    measure_peaks: bool

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise CommandError(f"sweep.order={self.order!r}: must be {', '.join(ORDERS)}")
        seed, rest_s = self.order_seed, self.cool_down_s
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise CommandError(f"sweep.order_seed={seed!r}: must be a whole number, 0 or more")
        if isinstance(rest_s, bool) or not isinstance(rest_s, (int, float)) or not 0 <= rest_s < math.inf:
            raise CommandError(f"sweep.cool_down_s={rest_s!r}: must be seconds, 0 or more")
        if not isinstance(self.measure_peaks, bool):
            raise CommandError(f"sweep.measure_peaks={self.measure_peaks!r}: must be true or false")

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Design:
        return cls(**{key: settings[key] for key in cls.__dataclass_fields__})

    @property
    def columns(self) -> dict[str, Any]:
        """As `runs` keeps it."""
        return {
            "design.order": self.order,
            "design.order_seed": self.order_seed if self.order == "shuffled" else None,
            "design.cool_down_s": float(self.cool_down_s),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPlan:
    """A sweep, whole: all that is decided later is which of the jobs that are not needed run."""

    name: str
    folder: Path
    timeout_s: float
    tracker: Component
    launcher: Component
    design: Design
    # In the order in which they run.
    jobs: tuple[Job, ...]


def plan_sweep(overrides: Sequence[str], *, default_experiment: str | None = None, single: bool = False) -> SweepPlan:
    """Compose every point of a command line.

    Args:
        overrides: as given on the command line.
        default_experiment: the experiment where none is named.
        single: allow one point only.

    Raises:
        CommandError: something that does not exist, or a sweep setting that does not fit.
    """
    jobs: dict[str, Job] = {}
    experiments: list[str] = []
    last: dict[str, Any] = {}
    with hydra_config():
        for combination in expand(overrides, default_experiment=default_experiment):
            if combination.experiment and combination.experiment not in experiments:
                experiments.append(combination.experiment)
            job = make_job(combination)
            last = job.config
            # Axes that come to the same config are one point.
            jobs.setdefault(job.run_id, job)
    if single and len(jobs) > 1:
        raise CommandError(f"minivllm run runs one point, these are {len(jobs)}; use minivllm sweep")
    return plan_of(last, experiments, jobs.values())


def plan_of(config: Mapping[str, Any], experiments: Sequence[str], jobs: Iterable[Job]) -> SweepPlan:
    """The settings of a sweep, which are those of any of its points."""
    settings = config["sweep"]
    timeout_s, name = settings["timeout_s"], settings["name"] or "+".join(experiments) or "run"
    if not isinstance(timeout_s, (int, float)) or isinstance(timeout_s, bool) or timeout_s <= 0:
        raise CommandError(f"sweep.timeout_s={timeout_s!r}: must be above 0")
    if "/" in str(name) or str(name).startswith("."):
        raise CommandError(f"sweep.name={name!r}: must be the name of a folder; sweep.folder says where it lies")
    design = Design.read(settings)
    return SweepPlan(
        name=str(name),
        folder=Path(settings["folder"]).absolute() / str(name),
        timeout_s=timeout_s,
        tracker=_component(config["tracking"]),
        launcher=_component(config["launcher"]),
        design=design,
        jobs=tuple(arrange(jobs, design)),
    )


def _component(node: Mapping[str, Any]) -> Component:
    return Component(target=node["_target_"], kwargs={key: node[key] for key in node if key != "_target_"})


def arrange(jobs: Iterable[Job], design: Design) -> list[Job]:
    """Put the points of each repeat in order; the repeats stay one after the other."""
    rounds: dict[int, list[Job]] = {}
    for job in jobs:
        rounds.setdefault(job.repeat, []).append(job)
    arranged = []
    for repeat in sorted(rounds):
        members = rounds[repeat]
        if design.order == "rotated":
            start = repeat * rotation_stride(len(members)) % len(members)
            members = members[start:] + members[:start]
        elif design.order == "shuffled":
            random.Random(f"{design.order_seed} {repeat}").shuffle(members)
        arranged += members
    return arranged


def rotation_stride(count: int) -> int:
    """By how many places each repeat starts later than the last: a stride without a common divisor, so that over
    `count` repeats every point has every place once, and near the golden section of `count`, so that few repeats start
    far from each other too."""
    wanted = count * (math.sqrt(5) - 1) / 2
    coprime = [stride for stride in range(1, count + 1) if math.gcd(stride, count) == 1]
    return min(coprime, key=lambda stride: abs(stride - wanted))


def make_job(combination: Combination) -> Job:
    """Compose a combination, within `hydra_config`.

    Raises:
        CommandError: a key or member that does not exist.
    """
    config = compose_config(combination.overrides, repeat=combination.repeat)
    for key in PLANNING:
        del config[key]
    config["experiment"] = combination.experiment
    invalid = None
    try:
        freeze(config)
    except CommandError:
        raise
    except ValueError as error:
        invalid = one_line(error)
    return Job(
        run_id=run_id(config),
        point_id=point_id(config),
        repeat=config["repeat"],
        label=combination.label,
        config=config,
        repeats=combination.repeats,
        needed=combination.needed,
        invalid=invalid,
    )
