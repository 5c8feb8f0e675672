"""When quality is measured, and what the group `quality` refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from experiments.plan import plan_sweep
from experiments.points import freeze, point_id
from experiments.quality.settings import QualityConfig, wants_quality
from minivllm.config import EngineConfig, ModelConfig, QuantizationConfig

CHECKPOINT = EngineConfig(model=ModelConfig(path="somewhere"))
LOSSY = dataclasses.replace(CHECKPOINT, quantization=QuantizationConfig.named("int4"))
LOSSY_RANDOM = dataclasses.replace(LOSSY, model=ModelConfig(weights="random", shape={"x": 1}))


def _config(*overrides: str) -> dict[str, Any]:
    (job,) = plan_sweep(overrides).jobs
    return job.config


@pytest.mark.parametrize(
    ("enabled", "engine", "measured"),
    [
        (None, CHECKPOINT, False),
        (None, LOSSY, True),
        (None, LOSSY_RANDOM, False),
        (True, CHECKPOINT, True),
        (False, LOSSY, False),
    ],
    ids=["nothing-lossy", "lossy", "lossy-random-weights", "asked-for", "off"],
)
def test_quality_is_measured_where_a_lossy_part_was_chosen_or_who_asks(
    enabled: bool | None, engine: EngineConfig, measured: bool
) -> None:
    assert QualityConfig(enabled=enabled).is_measured(engine) is measured


def test_only_the_first_repeat_is_asked() -> None:
    settings = freeze(_config("quality.enabled=true"))
    assert wants_quality(settings)
    assert not wants_quality(dataclasses.replace(settings, repeat=1))


def test_quality_is_part_of_who_a_point_is() -> None:
    ids = {point_id(_config(*more)) for more in ((), ("quality=off",), ("quality.num_windows=3",))}
    assert len(ids) == 3


def test_random_weights_have_no_quality_to_ask_for() -> None:
    (job,) = plan_sweep(["model=random", "quality.enabled=true"]).jobs
    assert job.invalid is not None
    assert job.invalid.startswith("quality.enabled=True: random weights have no quality: choose a model with ")
    assert plan_sweep(["model=random"]).jobs[0].invalid is None


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("enabled", "yes", "null, true or false"),
        ("text", "", "heldout or a .jsonl file"),
        ("num_windows", -1, "a whole number, 0 or more"),
        ("num_windows", True, "a whole number, 0 or more"),
        ("window_tokens", 1, "a whole number, 2 or more"),
        ("output_tokens", 0, "a whole number, 1 or more"),
        ("task_context_tokens", 1.5, "a whole number, 2 or more"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(key: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError) as error:
        QualityConfig(**{key: value})  # type: ignore[arg-type]
    assert str(error.value) == f"quality.{key}={value!r}: must be {allowed}"


def test_asking_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^quality\.num_windows=0: must be 1 or more where"):
        QualityConfig(enabled=True, num_windows=0, num_prompts=0, num_task_items=0)
