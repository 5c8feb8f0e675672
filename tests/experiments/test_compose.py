"""Every YAML composes and freezes; overrides mean what Hydra's grammar says; mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.compose import CONF, groups
from experiments.errors import CommandError
from experiments.plan import plan_sweep
from experiments.points import SIMULATION_GROUPS
from minivllm.config import Component

MEMBERS = [(group, member) for group, members in groups().items() for member in members if group != "experiment"]


# One value of an axis stands for all where there are hundreds of points.
_FEWER = {
    "speculation": ["workload.concurrency=4"],
    "speculation_cost": ["workload.concurrency=4"],
    "scheduler_simulated": ["arrivals.rate_scale=1", "scheduler=fcfs,edf"],
    "scheduler": ["arrivals.rate_rps=9"],
}


_MANDATORY = {
    ("model", "hf"): ["model.path=somewhere"],
    ("step_time", "fitted"): ["step_time.folder=somewhere"],
    ("step_time", "replay"): ["step_time.folder=somewhere"],
    ("arrivals", "trace"): ["arrivals.path=somewhere"],
    ("lengths", "separate"): ["lengths.prompt={_target_:a.B}", "lengths.output={_target_:a.B}"],
}


def _needed(group: str, member: str) -> list[str]:
    """What a member cannot do without."""
    simulated = ["execution=simulated"] if group in SIMULATION_GROUPS else []
    return [*simulated, *_MANDATORY.get((group, member), [])]


@pytest.mark.parametrize(("group", "member"), MEMBERS, ids=[f"{g}-{m}" for g, m in MEMBERS])
def test_every_member_composes_and_freezes(group: str, member: str) -> None:
    (job,) = plan_sweep([f"{group}={member}", *_needed(group, member)]).jobs
    assert job.invalid is None
    assert job.config["choices"][group] == member


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_experiment_composes_and_freezes(experiment: str) -> None:
    plan = plan_sweep([f"experiment={experiment}", *_FEWER.get(experiment, ())])
    assert plan.name == experiment
    # What a fit is made on is one point.
    assert len({job.point_id for job in plan.jobs}) > (experiment != "fidelity_load")
    assert [job.invalid for job in plan.jobs] == [None] * len(plan.jobs)
    assert not {"axes", "variants", "repeats", "repeat_until", "search"} & plan.jobs[0].config.keys()


def test_every_file_is_a_member_or_a_shared_part() -> None:
    files = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
    members = {f"{group}/{member}.yaml" for group, names in groups().items() for member in names}
    shared = {name for name in files if Path(name).name.startswith("_")}
    assert files == members | shared | {"config.yaml"}


def test_every_component_of_a_member_can_be_made() -> None:
    for group, extra in (("scheduler", {}), ("cache", {}), ("tracking", {"folder": Path("x"), "sweep": "x"})):
        for member in groups()[group]:
            if member == "wandb":
                continue
            plan = plan_sweep([f"{group}={member}"])
            target = plan.jobs[0].config[group]["_target_"]
            assert Component(target=target).make(group, **extra) is not None


def test_what_is_simulated_is_no_part_of_a_run_that_is_not() -> None:
    real = plan_sweep(["hardware=l4"]).jobs[0]
    assert [real.config[group] for group in SIMULATION_GROUPS] == [None, None]
    assert [real.config["choices"][group] for group in SIMULATION_GROUPS] == [None, None]
    assert real.point_id == plan_sweep([]).jobs[0].point_id
    simulated = plan_sweep(["execution=simulated", "hardware=l4,h200", "hardware.host_step_s=0"]).jobs
    assert len({job.point_id for job in simulated}) == 2
    assert [job.config["hardware"]["name"] for job in simulated] == ["L4", "H200 SXM"]
    wrong = plan_sweep(["execution=simulated", "hardware.linear_flops_fraction=2"]).jobs[0]
    assert wrong.invalid == "hardware.linear_flops_fraction=2: must be in (0, 1]"


def test_repeat_is_the_slowest_axis_and_command_line_order_follows() -> None:
    axes = ["repeat=range(2)", "scheduler=fcfs,static", "cache.block_size=8,16"]
    plan = plan_sweep([*axes, "sweep.order=as_given"])
    seen = [(j.repeat, j.config["choices"]["scheduler"], j.config["cache"]["block_size"]) for j in plan.jobs]
    assert seen == [(r, s, b) for r in (0, 1) for s in ("fcfs", "static") for b in (8, 16)]


def test_choice_range_and_glob_are_sweeps() -> None:
    plan = plan_sweep(["cache=glob(l*)", "scheduler.max_num_seqs=range(2,7,2)", "seed=choice(1,3)"])
    assert {j.config["choices"]["cache"] for j in plan.jobs} == {"lru", "lfu"}
    assert {j.config["scheduler"]["max_num_seqs"] for j in plan.jobs} == {2, 4, 6}
    assert {j.config["seed"] for j in plan.jobs} == {1, 3}
    assert len(plan.jobs) == 12


def test_a_list_in_brackets_is_a_value_not_a_sweep() -> None:
    (job,) = plan_sweep(["model.shape={architectures:[A,B]}"]).jobs
    assert job.config["model"]["shape"]["architectures"] == ["A", "B"]


def test_a_command_line_axis_replaces_the_experiments_own() -> None:
    fixed = plan_sweep(["scheduler=prefill_first"], default_experiment="quickstart")
    assert {j.config["choices"]["scheduler"] for j in fixed.jobs} == {"prefill_first"}
    assert {j.config["cache"]["prefix_caching"] for j in fixed.jobs} == {True, False}
    swept = plan_sweep(["experiment=quickstart", "cache.prefix_caching=true", "cache.block_size=8,16", "repeats=1"])
    assert {j.config["cache"]["prefix_caching"] for j in swept.jobs} == {True}
    assert len(swept.jobs) == 4


def test_two_experiments_keep_their_own_axes() -> None:
    plan = plan_sweep(["experiment=quickstart,ablation", "repeats=1"])
    assert plan.name == "quickstart+ablation"
    quickstart = [j for j in plan.jobs if j.config["experiment"] == "quickstart"]
    ablation = [j for j in plan.jobs if j.config["experiment"] == "ablation"]
    assert {j.config["variant"] for j in quickstart} == {None}
    assert ablation[0].config["variant"] == "baseline"
    assert len(quickstart) == 4


def test_a_variant_leaves_one_part_out_of_the_base_that_the_command_line_chose() -> None:
    plan = plan_sweep(["experiment=ablation", "repeats=1", "variant=baseline,no_prefix_cache", "cache.block_size=8"])
    base, without = (job.config for job in plan.jobs)
    assert (base["variant"], without["variant"]) == ("baseline", "no_prefix_cache")
    assert base["cache"] == {**without["cache"], "prefix_caching": True}
    assert base["cache"]["block_size"] == 8


def test_a_class_from_outside_is_named_by_its_path() -> None:
    (job,) = plan_sweep(["scheduler._target_=my_policies.Shortest", "+scheduler.alpha=2"]).jobs
    assert job.config["choices"]["scheduler"] == "my_policies.Shortest"
    assert job.config["scheduler"]["alpha"] == 2


MISTAKES = {
    "cache.blok_size=3": "did you mean cache.block_size?",
    "scheduler=sttic": "did you mean static?",
    "scheduler=fcfs,sttic": "did you mean static?",
    "experiment=quickstrat": "did you mean quickstart?",
    "nonsense=1": "no such key",
    "+nonsense=1": "nothing reads this key",
    "+model.nonsense=1": "nothing reads this key",
    "model=hf": "model.path: must be given",
    "a b": "is no override",
    "scheduler": "is no override",
    "repeat=-1": "whole number",
    "repeats=0": "1 or more",
    "variant=x": "no such variant",
    "sweep.timeout_s=0": "above 0",
    "sweep.name=a/b": "name of a folder",
    "hydra.verbose=true": "no meaning here",
    "cache.num_blocks=interval(1,2)": "cannot be enumerated",
    "cache=glob(zzz*)": "matches nothing",
    "axes.scheduler=[fcfs]": "experiment's YAML",
}


@pytest.mark.parametrize(("override", "says"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_is_one_line_that_names_it(override: str, says: str) -> None:
    with pytest.raises(CommandError) as caught:
        plan_sweep([override])
    message = str(caught.value)
    assert says in message
    assert "\n" not in message


def test_a_value_that_the_frozen_configs_refuse_is_an_invalid_job() -> None:
    jobs = plan_sweep(["cache.block_size=3,4", "sampling.top_p=1.0"]).jobs
    assert jobs[0].invalid == "cache.block_size=3: must be a power of two, 1 or more"
    assert jobs[1].invalid is None
