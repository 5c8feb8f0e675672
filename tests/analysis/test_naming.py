from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import analysis
from analysis.naming import format_value, short_names, variant_differences

FCFS, STATIC = "minivllm.scheduler.fcfs.FCFS", "minivllm.scheduler.static.StaticBatching"


def test_varying_is_what_differs_between_points_only(ablation: analysis.Sweep) -> None:
    assert analysis.varying(ablation) == ["cfg.variant", "cfg.scheduler._target_", "cfg.cache.prefix_caching"]


def test_a_value_that_changes_with_the_repeat_is_no_axis(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    # cfg.repeat is in every row, and differs.
    sweep = analysis.load(make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 2}], repeats=3))
    assert analysis.varying(sweep) == ["cfg.size"]


def test_where_results_go_is_no_axis(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [
        {"size": 1, "sweep.folder": "a", "tracking.project": "p"},
        {"size": 2, "sweep.folder": "b", "tracking.project": "q"},
    ]
    assert analysis.varying(analysis.load(make_sweep(tmp_path / "sweep", points))) == ["cfg.size"]


def test_a_variant_is_its_own_label(ablation: analysis.Sweep) -> None:
    assert analysis.labels(ablation).tolist() == ["baseline", "no_prefix_cache", "static_batching"]


def test_labels_are_read_like_a_command_line(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [
        {
            "scheduler._target_": target,
            "scheduler.knob": target == FCFS,
            "cache.prefix_caching": caching,
            "variant": None,
        }
        for target in (FCFS, STATIC)
        for caching in (True, False)
    ]
    sweep = analysis.load(make_sweep(tmp_path / "sweep", points))
    # scheduler.knob follows from the scheduler and is left out.
    assert analysis.labels(sweep).tolist() == [
        "scheduler=fcfs, prefix_caching=true",
        "scheduler=fcfs, prefix_caching=false",
        "scheduler=static, prefix_caching=true",
        "scheduler=static, prefix_caching=false",
    ]


def test_a_group_member_goes_by_its_name_and_brings_its_options_along(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    points = [
        {
            "cache": member,
            "cache._target_": "minivllm.blocks.lru.LRU",
            "cache.reuse_kv": member == "lru",
            "scheduler": choice,
        }
        | {"scheduler._target_": target}
        for member, choice, target in (
            ("lru", "fcfs", FCFS),
            ("none", "fcfs", FCFS),
            ("lru", "my_policies.Shortest", "my_policies.Shortest"),
        )
    ]
    sweep = analysis.load(make_sweep(tmp_path / "sweep", points))
    assert analysis.axes(sweep) == ["cfg.cache", "cfg.scheduler"]
    assert analysis.labels(sweep).tolist() == [
        "cache=lru, scheduler=fcfs",
        "cache=none, scheduler=fcfs",
        "cache=lru, scheduler=Shortest",
    ]


def test_an_option_that_only_one_component_has_shows_only_there(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    points = [{"scheduler._target_": FCFS}] + [
        {"scheduler._target_": "mine.Ageing", "scheduler.alpha": a} for a in (1, 2)
    ]
    sweep = analysis.load(make_sweep(tmp_path / "sweep", points))
    assert analysis.labels(sweep).tolist() == [
        "scheduler=fcfs",
        "scheduler=Ageing, alpha=1",
        "scheduler=Ageing, alpha=2",
    ]


def test_null_is_a_value_like_any_other(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    sweep = analysis.load(make_sweep(tmp_path / "sweep", [{"limit": None}, {"limit": 5}]))
    assert analysis.labels(sweep).tolist() == ["limit=null", "limit=5"]


def test_points_that_differ_in_nothing_shown_get_names_of_their_own(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    sweep = analysis.load(make_sweep(tmp_path / "sweep", [{"size": 1}, {"size": 1}]))
    assert len(set(analysis.labels(sweep))) == 2


def test_one_point_is_called_like_its_sweep(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    assert analysis.labels(analysis.load(make_sweep(tmp_path / "lonely", [{"size": 1}]))).tolist() == ["lonely"]


def test_attach_adds_the_varying_config_by_run(ablation: analysis.Sweep) -> None:
    steps = analysis.attach(ablation, ablation.steps)
    assert len(steps) == len(ablation.steps)
    off = steps.loc[steps["label"] == "no_prefix_cache", "cfg.cache.prefix_caching"]
    assert len(off) == 80 and not off.astype(bool).any()


def test_names_are_as_short_as_they_can_be_and_unique() -> None:
    columns = ["cfg.cache.block_size", "cfg.a.seed", "cfg.b.seed", "cfg.scheduler._target_"]
    assert list(short_names(columns).values()) == ["block_size", "a.seed", "b.seed", "scheduler"]
    both = ["cfg.scheduler", "cfg.scheduler._target_"]
    assert list(short_names(both).values()) == ["scheduler", "scheduler._target_"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (np.bool_(False), "false"),
        (None, "null"),
        (float("nan"), "null"),
        (16.0, "16"),
        (0.25, "0.25"),
        ([1, "a"], '[1, "a"]'),
        (np.array([1, 2]), "[1, 2]"),
        ("auto", "auto"),
        (STATIC, "static"),
        ("minivllm.scheduler.prefill_first.PrefillFirst", "prefill_first"),
        ("my_policies.Shortest", "Shortest"),
        ("v1.5", "v1.5"),
    ],
)
def test_values_are_shown_as_one_would_type_them(value: object, text: str) -> None:
    assert format_value(value) == text


def test_a_variant_is_told_by_what_it_has_and_not_by_what_it_lacks(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    text = {"quantization": "gptq", "quantization._target_": "a.Gptq"}
    text |= {"quantization.text": "t", "quantization.size": 64}
    points = [
        {"variant": "gptq", **text},
        {"variant": "gptq_32", **text, "quantization.size": 32},
        {"variant": "gptq_128", **text, "quantization.size": 128},
        {"variant": "none", "quantization": "none", "quantization._target_": "a.None", "quantization.size": None}
        | {"quantization.text": None},
        {"variant": "no_text", **text, "quantization.text": None},
    ]
    sweep = analysis.load(make_sweep(tmp_path / "sweep", points))
    assert variant_differences(sweep) == {
        "gptq": [],
        "gptq_32": ["quantization.size=32"],
        "gptq_128": ["quantization.size=128"],
        "none": ["quantization=none"],
        "no_text": ["quantization.text=null"],
    }
    assert variant_differences(analysis.load(make_sweep(tmp_path / "other", [{"size": 1}, {"size": 2}]))) == {}
