from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis.baseline import baselines

GRID = [
    {"scheduler": scheduler, "cache.block_size": size, "cache.prefix_caching": True, "model.path": "m", "tps": 100}
    for scheduler in ("fcfs", "static")
    for size in (8, 16)
]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, make_sweep: Callable[..., Path]) -> analysis.Sweep:
    return analysis.load(make_sweep(tmp_path_factory.mktemp("sweeps") / "grid", GRID, details=False))


def _base(sweep: analysis.Sweep, spec: Any, within: tuple[str, ...] = ()) -> list[str]:
    """The baseline's label, for each point in turn."""
    names = analysis.labels(sweep)
    return [names[base] for base in baselines(sweep, spec, within).values()]


@pytest.mark.parametrize(
    "spec",
    [
        "scheduler=static,cache.block_size=16",
        "scheduler=static, block_size=16",
        "cfg.scheduler=static,cfg.cache.block_size=16.0",
        {"scheduler": "static", "cache.block_size": 16},
        "scheduler=static,block_size=16,prefix_caching=True,model.path=m",
        "scheduler=static, block_size=16 ".strip(),
        "000000000003",
    ],
)
def test_a_point_is_found_by_its_knobs_however_they_are_written(grid: analysis.Sweep, spec: Any) -> None:
    assert _base(grid, spec) == ["scheduler=static, block_size=16"] * 4


def test_a_component_goes_by_its_short_name_and_by_its_path(ablation: analysis.Sweep) -> None:
    for spec in ("scheduler._target_=static", "scheduler._target_=minivllm.scheduler.static.StaticBatching"):
        assert set(_base(ablation, spec)) == {"static_batching"}
    assert set(_base(ablation, "variant=no_prefix_cache")) == set(_base(ablation, "no_prefix_cache"))


def test_without_a_word_it_is_the_variant_baseline_or_the_first_point(
    ablation: analysis.Sweep, grid: analysis.Sweep
) -> None:
    assert set(_base(ablation, None)) == {"baseline"}
    assert set(_base(grid, None)) == {"scheduler=fcfs, block_size=8"}
    assert _base(grid, None, ("scheduler",))[2:] == ["scheduler=static, block_size=8"] * 2


def test_a_config_with_a_null_variant_is_no_sweep_of_variants(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [{"variant": None, "size": 1}, {"variant": None, "size": 2}]
    assert _base(analysis.load(make_sweep(tmp_path / "sweep", points)), None) == ["size=1", "size=1"]


def test_within_gives_each_setting_a_baseline_of_its_own(grid: analysis.Sweep) -> None:
    by_size = _base(grid, "scheduler=fcfs", ("block_size",))
    assert by_size == ["scheduler=fcfs, block_size=8", "scheduler=fcfs, block_size=16"] * 2


def test_a_list_is_one_value(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    sweep = analysis.load(make_sweep(tmp_path / "sweep", [{"buckets": "[1, 2]"}, {"buckets": "[1, 4]"}]))
    assert _base(sweep, "buckets=[1, 4]") == ["buckets=[1, 4]"] * 2


@pytest.mark.parametrize(
    ("spec", "within", "says"),
    [
        ("scheduler=sjf", (), "baseline=scheduler=sjf: fits no point; there are scheduler=fcfs, block_size=8; "),
        (
            "scheduler=fcfs",
            (),
            "fits 2 points (scheduler=fcfs, block_size=8; scheduler=fcfs, block_size=16); add a knob",
        ),
        ({"scheduler": "fcfs"}, (), "baseline=scheduler=fcfs: fits 2 points"),
        ("sched=fcfs", (), "baseline=sched=fcfs: 'sched': no such knob; this sweep varies scheduler, block_size"),
        ("=fcfs", (), "must be knob=value,knob=value or a point's label"),
        ("nonsense", (), "baseline=nonsense: fits no point"),
        ("scheduler=fcfs", ("size",), "within=size: 'size': no such knob"),
        (
            "scheduler=fcfs,block_size=8",
            ("block_size",),
            "fits no point of the same block_size as scheduler=fcfs, block",
        ),
    ],
)
def test_a_baseline_that_is_no_one_point_is_one_line_with_the_choices(
    grid: analysis.Sweep, spec: Any, within: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ValueError) as error:
        baselines(grid, spec, within)
    assert says in str(error.value) and "\n" not in str(error.value)
