"""A point is its resolved config: nothing else changes its id, and everything in it does."""

from __future__ import annotations

import pytest

from experiments.plan import plan_sweep
from experiments.points import ASSETS, Slo, canonical_json, freeze, located, point_id, run_id


def _make_config(*overrides: str) -> dict:
    (job,) = plan_sweep(overrides).jobs
    return job.config


def _reversed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(list(value))}
    return value


def test_canonical_json_knows_no_order_and_no_whole_floats() -> None:
    assert canonical_json({"b": 4.0, "a": [1, {"d": None, "c": True}]}) == '{"a":[1,{"c":true,"d":null}],"b":4}'
    assert canonical_json({"a": 0.1}) == '{"a":0.1}'


def test_the_hash_is_that_of_the_contract() -> None:
    # sha256 of '{"cache":{"block_size":16},"seed":0}'
    config = {
        "seed": 0,
        "cache": {"block_size": 16},
        "repeat": 3,
        "sweep": {"folder": "x"},
        "tracking": {},
        "choices": {},
    }
    assert point_id(config) == "872e72655b2e"
    assert run_id(config) == "872e72655b2e-r3"


@pytest.mark.parametrize(
    "override",
    [
        "repeat=4",
        "tracking=none",
        "tracking.project=other",
        "sweep.folder=elsewhere",
        "sweep.name=x",
        "sweep.timeout_s=1",
    ],
)
def test_what_changes_no_result_changes_no_id(override: str) -> None:
    assert point_id(_make_config()) == point_id(_make_config(override))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "cache.block_size=8",
        "scheduler=static",
        "workload=poisson",
        "slo=interactive",
        "+scheduler.alpha=1",
        "victim=oldest",
    ],
)
def test_what_changes_a_run_changes_the_id(override: str) -> None:
    assert point_id(_make_config()) != point_id(_make_config(override))


def test_the_order_of_keys_and_overrides_changes_no_id() -> None:
    config = _make_config("cache.block_size=8", "seed=3")
    assert point_id(_reversed(config)) == point_id(config) == point_id(_make_config("seed=3", "cache.block_size=8"))


def test_a_component_gets_the_keys_that_the_config_has_no_field_for() -> None:
    settings = freeze(_make_config("scheduler._target_=a.B", "+scheduler.alpha=2", "scheduler.max_num_seqs=5"))
    assert settings.engine.scheduler.policy.target == "a.B"
    assert settings.engine.scheduler.policy.kwargs == {"alpha": 2}
    assert settings.engine.scheduler.max_num_seqs == 5


def test_victims_and_preemption_are_groups_of_their_own() -> None:
    engine = freeze(_make_config("victim=largest", "preemption=swap", "preemption.num_swap_blocks=7")).engine
    assert engine.scheduler.victim.target == "minivllm.scheduler.victims.largest.Largest"
    assert engine.preemption.swaps and engine.preemption.num_swap_blocks == 7
    engine = freeze(
        _make_config("victim._target_=a.B", "+victim.alpha=2", "preemption=swap", "+preemption.beta=3")
    ).engine
    assert (engine.scheduler.victim.target, engine.scheduler.victim.kwargs) == ("a.B", {"alpha": 2})
    assert engine.preemption.mode.kwargs == {"beta": 3}
    engine = freeze(_make_config()).engine
    assert not engine.preemption.swaps and engine == freeze(_make_config("preemption=recompute")).engine


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["preemption=swap", "preemption.swap_bytes=null"],
            r"preemption\.num_swap_blocks=None: must be 1 or more where",
        ),
        (["preemption=swap", "cache=none"], r"cache\.reuse_kv=False: must be true with preemption=swap"),
        (["+preemption.swap_bytes=4"], r"preemption\.swap_bytes=4: must be null with preemption=recompute"),
        (["victim._target_=null"], r"victim\._target_=None: must be package\.module\.Class"),
    ],
)
def test_what_cannot_be_preempted_so_is_one_line(overrides: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=rf"^{told}[^\n]*$"):
        freeze(_make_config(*overrides))


def test_shipped_files_are_found_wherever_the_package_lies() -> None:
    assert located("experiments/assets/reference-target") == str(ASSETS / "reference-target")
    assert located("/some/folder") == "/some/folder"
    assert located(None) is None


@pytest.mark.parametrize(("key", "value"), [("ttft_s", 0), ("tpot_s", -1), ("ttft_s", True), ("tpot_s", "1")])
def test_a_limit_that_is_none_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"slo.{key}="):
        Slo(**{key: value})
