"""Every policy and predictor of ours is one file, one config of the same name that composes, and a member of the tests'
tables."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from policies import POLICIES, PREDICTORS

import minivllm.scheduler
import minivllm.scheduler.predictors
from experiments.compose import groups
from experiments.plan import plan_sweep
from experiments.points import freeze
from minivllm.config import Component, SchedulerConfig
from minivllm.scheduler.base import SchedulingPolicy
from minivllm.scheduler.predictors.base import LengthPredictor

FAMILIES = {
    "scheduler": (minivllm.scheduler, SchedulingPolicy, POLICIES),
    "length_predictor": (minivllm.scheduler.predictors, LengthPredictor, PREDICTORS),
}
MEMBERS = [(group, member) for group in FAMILIES for member in groups()[group]]


def _classes(package, base: type) -> dict[str, type]:
    """Of each module that defines a member, its name and class."""
    found = {}
    for path in Path(package.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"{package.__name__}.{path.stem}")
        for made in vars(module).values():
            if inspect.isclass(made) and issubclass(made, base) and made.__module__ == module.__name__:
                assert made is base or path.stem not in found, f"{path.stem} holds two members"
                if made is not base:
                    found[path.stem] = made
    return found


@pytest.mark.parametrize("group", FAMILIES)
def test_files_configs_and_tables_name_the_same_members(group: str) -> None:
    package, base, table = FAMILIES[group]
    classes = _classes(package, base)
    assert sorted(classes) == sorted(groups()[group])
    assert sorted(table) == sorted(f"{stem}.{made.__name__}" for stem, made in classes.items())


@pytest.mark.parametrize(("group", "member"), MEMBERS, ids=[f"{g}-{m}" for g, m in MEMBERS])
def test_a_config_names_every_argument_of_its_class(group: str, member: str) -> None:
    package, base, _ = FAMILIES[group]
    # One policy needs limits, and takes them from the SLO.
    (job,) = plan_sweep([f"{group}={member}", "slo=interactive", "seed=7"]).jobs
    assert job.invalid is None
    config: SchedulerConfig = freeze(job.config).engine.scheduler
    component: Component = config.policy if group == "scheduler" else config.predictor
    made = component.make(group, base)
    assert type(made) is _classes(package, base)[member]
    arguments = {} if type(made).__init__ is object.__init__ else inspect.signature(type(made)).parameters
    assert set(component.kwargs) == set(arguments)
    for name, value in component.kwargs.items():
        wanted = {"seed": 7}.get(name, arguments[name].default)
        assert value == wanted, f"{group}/{member}.yaml and its class differ in {name}"


def test_deadlines_come_from_the_slo_and_are_asked_for_where_it_has_none() -> None:
    def policy(*overrides: str) -> Component:
        (job,) = plan_sweep(["scheduler=edf", *overrides]).jobs
        return freeze(job.config).engine.scheduler.policy

    assert policy("slo=interactive").kwargs["ttft_s"] == 0.45
    assert policy("slo=interactive").kwargs["tpot_s"] == 0.04
    assert policy("slo=interactive", "scheduler.tpot_s=0.1").kwargs["tpot_s"] == 0.1
    with pytest.raises(ValueError, match=r"^scheduler.ttft_s=None: must be above 0: set it, or .*slo=interactive$"):
        policy("slo=none").make("scheduler", SchedulingPolicy)


def test_a_predictor_of_the_users_own_plugs_in_and_is_part_of_the_point() -> None:
    plans = [plan_sweep(overrides).jobs[0] for overrides in ([], ["length_predictor=constant"])]
    assert plans[0].point_id != plans[1].point_id
    (job,) = plan_sweep(["length_predictor._target_=mine.Guess", "+length_predictor.alpha=2"]).jobs
    predictor = freeze(job.config).engine.scheduler.predictor
    assert (predictor.target, predictor.kwargs) == ("mine.Guess", {"alpha": 2})
