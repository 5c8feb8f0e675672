from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from noisy_sweeps import METRIC, Noise, make_sweep, spared_collector

import analysis

KNOBS = list(product(("fcfs", "static"), (8, 16, 32), (True, False)))
CONFIGS = [{"cfg.scheduler": s, "cfg.cache.block_size": b, "cfg.cache.prefix_caching": p} for s, b, p in KNOBS]
STATIC, BLOCK_16, BLOCK_32, NO_PREFIX, STATIC_AND_NO_PREFIX = 0.6, 1.1, 1.3, 0.7, 1.25
SILENT = Noise(run=0, workload=0.1, drift=0, walk=0)


def _ratio(scheduler: str, block: int, prefix: bool) -> float:
    made = {8: 1.0, 16: BLOCK_16, 32: BLOCK_32}[block]
    made *= STATIC if scheduler == "static" else 1
    made *= 1 if prefix else NO_PREFIX
    return made * (STATIC_AND_NO_PREFIX if scheduler == "static" and not prefix else 1)


def _make(noise: Noise = SILENT, repeats: int = 3, seed: int = 0) -> analysis.Sweep:
    return make_sweep(np.random.default_rng(seed), [_ratio(*knob) for knob in KNOBS], repeats, noise, CONFIGS)


def test_planted_effects_and_their_interaction_come_back() -> None:
    made = analysis.effects(_make()).set_index(["kind", "knob", "value"]).sort_index()
    assert len(made) == 4 + 5
    main = made.loc["main"]
    # Half of the settings of the other knob carry the interaction.
    half = np.sqrt(STATIC_AND_NO_PREFIX)
    assert main.loc[("scheduler", "static"), "ratio"] == pytest.approx(STATIC * half)
    assert main.loc[("block_size", "32"), "ratio"] == pytest.approx(BLOCK_32)
    assert main.loc[("prefix_caching", "false"), "ratio"] == pytest.approx(NO_PREFIX * half)
    assert main["reference"].groupby("knob").first().to_dict() == {
        "block_size": "8",
        "prefix_caching": "true",
        "scheduler": "fcfs",
    }
    assert main["num_settings"].groupby("knob").first().to_dict() == {
        "block_size": 4,
        "prefix_caching": 6,
        "scheduler": 6,
    }
    both = analysis.effects(_make()).query("kind == 'interaction'")
    planted = (both["knob"] == "scheduler") & (both["knob2"] == "prefix_caching")
    assert both.loc[planted, "ratio"].tolist() == pytest.approx([STATIC_AND_NO_PREFIX])
    assert both.loc[~planted, "ratio"].to_numpy() == pytest.approx(1)


def test_missing_points_bias_nothing() -> None:
    sweep = _make()
    runs = sweep.runs
    # Without the fastest point and, in one repeat, another: plain means over the rest would be off by far.
    runs = runs[~(runs["point_id"] == runs.loc[runs[METRIC].idxmax(), "point_id"])].reset_index(drop=True)
    runs.loc[(runs["point_id"] == f"{8:012x}") & (runs["repeat"] == 1), METRIC] = np.nan
    object.__setattr__(sweep, "runs", runs)
    made = analysis.effects(sweep).query("kind == 'main' and knob == 'block_size'").set_index("value")
    assert made["ratio"].tolist() == pytest.approx([BLOCK_16, BLOCK_32])
    naive = runs.groupby("cfg.cache.block_size")[METRIC].mean()
    assert abs(naive[32] / naive[8] - BLOCK_32) > 0.05


@spared_collector()
def test_intervals_are_over_repeats_and_cover_the_truth() -> None:
    noise = Noise(run=0.02, workload=0.05, drift=0.05)
    covered, shown = [], []
    for seed in range(50):
        made = analysis.effects(_make(noise, repeats=4, seed=seed))
        row = made[(made["knob"] == "block_size") & (made["value"] == "32") & (made["kind"] == "main")].iloc[0]
        covered.append(row["low"] <= BLOCK_32 <= row["high"])
        shown.append(row["p_holm"] < 0.05)
        assert row["n"] == 4
    assert np.mean(covered) > 0.87
    assert np.mean(shown) > 0.9


def test_one_repeat_has_effects_and_no_intervals() -> None:
    made = analysis.effects(_make(repeats=1))
    assert made["ratio"].notna().all()
    assert made[["low", "high", "p", "p_holm"]].isna().all().all()


def test_a_sweep_of_variants_has_main_effects_only(ablation: analysis.Sweep) -> None:
    made = analysis.effects(ablation)
    assert made["kind"].tolist() == ["main", "main"]
    assert made["value"].tolist() == ["no_prefix_cache", "static_batching"]
    assert made["ratio"].tolist()[1] == pytest.approx(0.5)


def test_metrics_that_may_be_zero_have_no_effects(ablation: analysis.Sweep) -> None:
    with pytest.raises(ValueError, match="metric=num_preemptions: must be above 0 everywhere for effects"):
        analysis.effects(ablation, "num_preemptions")
