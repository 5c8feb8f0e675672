from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from noisy_sweeps import Noise, make_sweep

import analysis
from analysis.noise import aa_groups, noise_floor


def _make_aa(
    repeats: int = 6, noise: Noise | None = None, ratios: tuple[float, ...] = (1.0, 1.0, 0.9)
) -> analysis.Sweep:
    """Two labels of one config, and another config under one of these labels."""
    configs = [
        {"cfg.quantization": "none", "cfg.label": "a"},
        {"cfg.quantization": "none", "cfg.label": "b"},
        {"cfg.quantization": "int8", "cfg.label": "a"},
    ]
    return make_sweep(np.random.default_rng(3), ratios, repeats, noise, configs)


def test_points_that_differ_in_their_label_alone_are_aa_points() -> None:
    assert aa_groups(_make_aa()) == [[("synthetic", "000000000000"), ("synthetic", "000000000001")]]


@pytest.mark.parametrize("name", ["cfg.label", "cfg.variant"])
def test_a_variant_that_changes_nothing_is_an_aa_point_too(name: str) -> None:
    sweep = make_sweep(np.random.default_rng(0), [1, 1, 1], 3, configs=[{name: "a"}, {name: "b"}, {name: "c"}])
    assert len(aa_groups(sweep)[0]) == 3


def test_points_that_differ_in_a_setting_or_in_nothing_recorded_are_not() -> None:
    configs = [{"cfg.label": "a", "cfg.size": 1}, {"cfg.label": "b", "cfg.size": None}]
    assert aa_groups(make_sweep(np.random.default_rng(0), [1, 1], 3, configs=configs)) == []
    assert aa_groups(make_sweep(np.random.default_rng(0), [1, 1], 3, configs=[{}, {}])) == []
    assert aa_groups(make_sweep(np.random.default_rng(0), [1, 1], 3)) == []


def test_the_floor_is_the_interval_of_no_difference_or_what_was_seen() -> None:
    values = pd.DataFrame({"a": [100.0, 100.0, 100.0, 100.0], "b": [101.0, 99.0, 102.0, 98.0]})
    logs = np.log(values["b"] / values["a"])
    # t(0.975, 3) = 3.1824.
    assert noise_floor(values) == pytest.approx(np.expm1(3.1824 * logs.std() / 2), rel=1e-4)
    assert noise_floor(pd.DataFrame({"a": [100.0] * 4, "b": [110.0] * 4})) == pytest.approx(0.1)
    assert np.isnan(noise_floor(values.iloc[:1]))


def test_what_a_repeat_does_to_all_labels_is_no_noise() -> None:
    shared = np.array([1.0, 2.0, 0.5, 3.0])
    values = pd.DataFrame({"a": [100.0, 101.0, 99.0, 100.0], "b": [101.0, 100.0, 100.0, 99.0]})
    assert noise_floor(values.mul(shared, axis=0)) == pytest.approx(noise_floor(values))


def test_the_floor_stands_beside_other_comparisons_and_not_beside_its_own() -> None:
    made = analysis.compare(_make_aa(), baseline={"quantization": "none", "label": "a"}).set_index("label")
    assert made["noise_floor"].isna().tolist() == [True, False]
    assert 0 < made["noise_floor"].iloc[1] < 0.1
    assert made.attrs["caveats"] == []


def test_a_difference_that_equal_points_show_too_is_not_believed() -> None:
    # Label b always runs second and 8 % slower: a systematic error that no interval knows.
    quiet = Noise(run=0.002, workload=0.05, drift=0, walk=0)
    sweep = _make_aa(6, quiet, ratios=(1.0, 0.92, 0.94))
    made = analysis.compare(sweep, baseline="quantization=none,label=a").set_index("point_id")
    assert made.loc["000000000002", "ratio_high"] < 0.95
    assert made.loc["000000000002", "verdict"] == "no difference shown"
    clear = analysis.compare(_make_aa(6, quiet, ratios=(1.0, 0.92, 0.8)), baseline="quantization=none,label=a")
    assert clear["verdict"].iloc[1] == "slower"
