"""A command line made into jobs: every point composed, resolved and named before the first one runs.

Hydra composes lazily at launch, so that editing a YAML during a sweep changes its later points; here the configs are
frozen first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.axes import expand
from experiments.compose import compose_config, hydra_config
from experiments.errors import CommandError, one_line
from experiments.points import freeze, point_id, run_id
from minivllm.config import Component


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One repeat of one point."""

    run_id: str
    point_id: str
    repeat: int
    # Place in the sweep's order of running.
    order_index: int
    label: str
    # Resolved, plain values.
    config: dict[str, Any]
    # Why the frozen configs refuse it; then it is a row, and does not run.
    invalid: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPlan:
    """A sweep, whole: nothing of it is decided later."""

    name: str
    folder: Path
    timeout_s: float
    tracker: Component
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
    settings: dict[str, Any] = {}
    tracking: dict[str, Any] = {}
    with hydra_config():
        for combination in expand(overrides, default_experiment=default_experiment):
            config = compose_config(combination.overrides, repeat=combination.repeat)
            for key in ("axes", "variants", "repeats"):
                del config[key]
            config["experiment"] = combination.experiment
            if combination.experiment and combination.experiment not in experiments:
                experiments.append(combination.experiment)
            settings, tracking = config["sweep"], dict(config["tracking"])
            job = _job(config, combination.label, len(jobs))
            # Axes that come to the same config are one point.
            jobs.setdefault(job.run_id, job)
    if single and len(jobs) > 1:
        raise CommandError(f"minivllm run runs one point, these are {len(jobs)}; use minivllm sweep")
    timeout_s, name = settings["timeout_s"], settings["name"] or "+".join(experiments) or "run"
    if not isinstance(timeout_s, (int, float)) or isinstance(timeout_s, bool) or timeout_s <= 0:
        raise CommandError(f"sweep.timeout_s={timeout_s!r}: must be above 0")
    if "/" in str(name) or str(name).startswith("."):
        raise CommandError(f"sweep.name={name!r}: must be the name of a folder; sweep.folder says where it lies")
    return SweepPlan(
        name=str(name),
        folder=Path(settings["folder"]).absolute() / str(name),
        timeout_s=timeout_s,
        tracker=Component(target=tracking.pop("_target_"), kwargs=tracking),
        jobs=tuple(jobs.values()),
    )


def _job(config: dict[str, Any], label: str, order_index: int) -> Job:
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
        order_index=order_index,
        label=label,
        config=config,
        invalid=invalid,
    )
