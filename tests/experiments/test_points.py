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
    ["seed=1", "cache.block_size=8", "scheduler=static", "workload=poisson", "slo=interactive", "+scheduler.alpha=1"],
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


def test_shipped_files_are_found_wherever_the_package_lies() -> None:
    assert located("experiments/assets/reference-target") == str(ASSETS / "reference-target")
    assert located("/some/folder") == "/some/folder"
    assert located(None) is None


@pytest.mark.parametrize(("key", "value"), [("ttft_s", 0), ("tpot_s", -1), ("ttft_s", True), ("tpot_s", "1")])
def test_a_limit_that_is_none_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"slo.{key}="):
        Slo(**{key: value})
