"""Policies of known figures: what the frames, tables, words and plots make of them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_sweeps import spared_collector, sweep_of
from policy_sweeps import write_capacity, write_policies, write_table
from rich.console import Console

import analysis
from analysis import plots
from analysis.answer import Answer, answer
from analysis.columns import DESCRIPTIONS, TABLES
from analysis.figures import write_figures
from analysis.markdown import markdown
from analysis.metrics import metric_of
from analysis.page import page
from analysis.plots import write_plots
from analysis.scheduling_answer import Scheduling, scheduling_answer
from analysis.scheduling_clients import client_tails
from analysis.scheduling_rows import has_scheduling, rows_of
from analysis.scheduling_table import OFF
from analysis.schedulings import scheduling
from analysis.terminal import print_scheduling

_FIGURES = ("e2e_mean_s", "ttft_p99_s", "goodput_rps")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> analysis.Sweep:
    folder = tmp_path_factory.mktemp("sweeps") / "policies"
    write_policies(folder, rates=(4, 12), workloads=("chat", "code"), num_requests=24)
    write_capacity(folder, {"fcfs": 3.0, "srpt": 5.0, "sjf": 4.0})
    return analysis.load(folder)


@pytest.fixture(scope="module")
def found(swept: analysis.Sweep) -> Scheduling:
    made = scheduling_answer(swept)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def both_lives(tmp_path_factory: pytest.TempPathFactory) -> analysis.Sweep:
    folder = tmp_path_factory.mktemp("sweeps") / "lives"
    return analysis.load(write_policies(folder, rates=(8,), lives=(False, True), slow=1.03, num_requests=24))


def _planted(
    rng: np.random.Generator,
    figures: Mapping[str, Mapping[str, float]],
    *,
    repeats: int = 5,
    noise: float = 0.01,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
) -> analysis.Sweep:
    """A sweep in memory: of each policy its true figures; what a workload does to all of them is shared."""
    rows = []
    for repeat in range(repeats):
        workload = np.exp(rng.normal(0, 0.3))
        for place, (policy, own) in enumerate(figures.items()):
            point = f"{place:012x}"
            rows.append(
                {
                    **{"sweep": "planted", "run_id": f"{point}-r{repeat}", "point_id": point, "repeat": repeat},
                    **{"order_index": len(rows), "status": "ok", "schema_version": 6, "workload_sha256": str(repeat)},
                    "cfg.scheduler": policy.partition("@")[0],
                    **(configs or {}).get(policy, {}),
                    **{name: value * workload * np.exp(rng.normal(0, noise)) for name, value in own.items()},
                }
            )
    return sweep_of(pd.DataFrame(rows), "planted")


def test_a_row_a_point_with_its_policy_load_and_setting(swept: analysis.Sweep) -> None:
    frame = analysis.scheduling(swept)
    assert len(frame) == 3 * 2 * 2 and frame.attrs["policies"] == ["fcfs", "sjf", "srpt"]
    assert set(frame["setting"]) == {"workload=chat", "workload=code"} and set(frame["load"]) == {4.0, 12.0}
    assert frame.attrs["load_name"] == "rate (req/s)" and frame.attrs["is_rate"]
    row = frame[(frame["policy"] == "srpt") & (frame["load"] == 12) & (frame["setting"] == "workload=code")].iloc[0]
    own = swept.runs[swept.runs["point_id"] == row["point_id"]]["e2e_mean_s"]
    assert row["e2e_mean_s"] == pytest.approx(own.mean()) and row["num_repeats"] == 3
    from scipy import stats

    low, high = stats.ttest_1samp(own, 0).confidence_interval(0.95)
    assert (row["e2e_mean_s_low"], row["e2e_mean_s_high"]) == pytest.approx((low, high))


def test_normalized_latency_is_of_each_request_and_wasted_tokens_of_all(swept: analysis.Sweep) -> None:
    frame = analysis.scheduling(swept)
    row = frame.iloc[-1]
    runs = swept.runs[swept.runs["point_id"] == row["point_id"]].set_index("run_id")
    requests = swept.requests[swept.requests["run_id"].isin(runs.index)]
    each = (requests["e2e_s"] / requests["num_output_tokens"]).groupby(requests["run_id"]).mean()
    assert row["normalized_latency_mean_s"] == pytest.approx(each.mean())
    wasted = runs["num_recomputed_tokens"] / (runs["num_prompt_tokens"] + runs["num_output_tokens"])
    assert row["recomputed_fraction"] == pytest.approx(wasted.mean())


def test_warm_up_is_in_no_figure(swept: analysis.Sweep) -> None:
    cold = swept.requests.assign(warmup=True, e2e_s=1e6)
    more = replace(swept, requests=pd.concat([swept.requests, cold], ignore_index=True))
    name = "normalized_latency_p99_s"
    assert (analysis.scheduling(more)[name] == analysis.scheduling(swept)[name]).all()
    assert client_tails(more).equals(client_tails(swept))


def test_the_chosen_load_is_the_highest_that_most_policies_keep_up_with() -> None:
    figures, configs = {}, {}
    for policy in ("fcfs", "sjf", "srpt"):
        for rate in (2, 4, 8):
            kept_up = {2: True, 4: policy != "sjf", 8: policy == "srpt"}[rate]
            figures[f"{policy}@{rate}"] = {"request_throughput_rps": rate * (1 if kept_up else 0.7)}
            configs[f"{policy}@{rate}"] = {"cfg.arrivals.rate_rps": float(rate)}
    sweep = _planted(np.random.default_rng(0), figures, noise=0, configs=configs)
    # What a hard workload does to all is no saturation.
    sweep = replace(sweep, runs=sweep.runs.assign(offered_rate_rps=math.nan))
    sweep.runs["request_throughput_rps"] = [figures[key]["request_throughput_rps"] for key in figures] * 5
    assert analysis.scheduling(sweep).attrs["chosen"] == {"": 4.0}


def test_a_planted_winner_is_told_and_a_planted_tie_is_shared() -> None:
    figures = {
        "fcfs": {"e2e_mean_s": 1.3, "goodput_rps": 4.0},
        "srpt": {"e2e_mean_s": 1.0, "goodput_rps": 5.0},
        "sjf": {"e2e_mean_s": 1.1, "goodput_rps": 5.0},
    }
    found = analysis.winners(_planted(np.random.default_rng(3), figures)).set_index("metric")
    latency, goodput = found.loc["e2e_mean_s"], found.loc["goodput_rps"]
    assert latency["best"] == "srpt" and latency["is_told"] and latency["alike"] == []
    assert latency["runner_up"] == "sjf" and latency["ratio_low"] < 1 / 1.1 < latency["ratio_high"]
    assert not goodput["is_told"] and {goodput["best"], *goodput["alike"]} == {"srpt", "sjf"}


@given(seed=st.integers(0, 2**32 - 1), num=st.integers(2, 5), noise=st.floats(0.005, 0.03))
@settings(max_examples=8, deadline=None)
def test_a_large_difference_is_found_whatever_the_noise(seed: int, num: int, noise: float) -> None:
    figures = {f"p{i}": {"ttft_p99_s": 1.0 + i} for i in range(num)}
    found = analysis.winners(_planted(np.random.default_rng(seed), figures, repeats=8, noise=noise)).iloc[0]
    assert found["best"] == "p0" and found["is_told"] and found["alike"] == []


def test_equal_policies_are_seldom_told_apart() -> None:
    rng = np.random.default_rng(7)
    with spared_collector():
        equal = {f"p{i}": {"e2e_mean_s": 1.0} for i in range(4)}
        told = [analysis.winners(_planted(rng, equal, repeats=4, noise=0.05)).iloc[0] for _ in range(40)]
    # 5 % of 40 is 2.
    assert sum(bool(row["is_told"]) for row in told) <= 3
    assert sum(len(row["alike"]) < 3 for row in told) <= 8


def test_of_one_repeat_nothing_is_told(tmp_path: Path) -> None:
    sweep = analysis.load(write_policies(tmp_path / "one", rates=(12,), repeats=1, num_requests=40))
    found = analysis.winners(sweep)
    told = found["is_told"].map(lambda value: value is None or value is False)
    assert told.all() and found["is_told"].isna().any()
    assert analysis.scheduling(sweep)["e2e_mean_s_low"].isna().all()
    assert any("one repeat" in line for line in analysis.scheduling(sweep).attrs["caveats"])


def test_where_all_figures_are_the_same_there_is_no_winner() -> None:
    same = {policy: {"slo_attainment_fraction": 1.0} for policy in ("fcfs", "sjf", "srpt")}
    sweep = _planted(np.random.default_rng(0), same, noise=0)
    sweep.runs["slo_attainment_fraction"] = 1.0
    row = analysis.winners(sweep).iloc[0]
    assert not row["is_told"] and len(row["alike"]) == 2


def test_an_ablation_of_several_parts_compares_no_policies(ablation: analysis.Sweep) -> None:
    assert not has_scheduling(ablation) and analysis.scheduling(ablation).empty


def test_variants_that_differ_in_the_scheduler_alone_are_policies() -> None:
    configs = {"fcfs": {"cfg.variant": "baseline"}, "srpt": {"cfg.variant": "mine"}, "sjf": {"cfg.variant": "theirs"}}
    sweep = _planted(np.random.default_rng(0), {name: {"e2e_mean_s": 1.0} for name in configs}, configs=configs)
    assert [row.policy for row in rows_of(sweep).rows] == ["baseline", "mine", "theirs"]


def test_a_sweep_of_anything_else_has_no_such_section(precisions: analysis.Sweep) -> None:
    assert not has_scheduling(precisions) and scheduling_answer(precisions) is None
    assert analysis.scheduling(precisions).empty and analysis.winners(precisions).empty
    assert analysis.fidelity(precisions).empty and analysis.capacity(precisions).empty


def test_parts_of_the_scheduler_are_policies_too(tmp_path: Path) -> None:
    sweep = analysis.load(
        write_policies(tmp_path / "v", knob="victim", policies=("fcfs", "sjf"), rates=(8,), repeats=2)
    )
    assert [row.policy for row in rows_of(sweep).rows][:2] == ["victim=fcfs", "victim=sjf"]
    assert rows_of(sweep).load_name == "" and np.isnan(analysis.scheduling(sweep)["load"]).all()


def test_simulated_points_are_compared_with_real_ones_of_the_same_repeat(both_lives: analysis.Sweep) -> None:
    errors = analysis.fidelity(both_lives)
    assert set(errors["policy"]) == {"fcfs", "sjf", "srpt"} and (errors["num_pairs"] == 3).all()
    runs = both_lives.runs.set_index(["cfg.scheduler", "simulated", "repeat"])["tpot_mean_s"].astype(float)
    row = errors[(errors["policy"] == "fcfs") & (errors["metric"] == "tpot_mean_s")].iloc[0]
    ratios = [runs["fcfs", True, r] / runs["fcfs", False, r] for r in range(3)]
    assert row["error"] == pytest.approx(np.exp(np.mean(np.log(ratios))) - 1)
    assert 0.02 < row["error"] < 0.06 and row["tolerance"] == 0.05
    assert errors[errors["metric"] == "ttft_p90_s"]["tolerance"].eq(0.1).all()
    # A life is no setting: neither is what goes with it.
    assert set(analysis.scheduling(both_lives)["setting"]) == {"real", "simulated"}


def _lives(real: Sequence[float], simulated: Sequence[float]) -> analysis.Sweep:
    names = [f"p{i}" for i in range(len(real))]
    figures = {f"{name}@{life}": {"e2e_mean_s": value} for life, own in (("real", real), ("sim", simulated))
               for name, value in zip(names, own, strict=True)}  # fmt: skip
    configs = {key: {"simulated": key.endswith("sim"), "cfg.execution": key.partition("@")[2]} for key in figures}
    return _planted(np.random.default_rng(1), figures, configs=configs, noise=0.002)


def test_a_planted_error_and_a_planted_swap_of_ranks_are_found() -> None:
    errors = analysis.fidelity(_lives((1.0, 1.2, 1.5), (1.25, 1.21, 1.5)))
    by_policy = errors.set_index("policy")
    assert by_policy.loc["p0", "error"] == pytest.approx(0.25, abs=0.01) and not by_policy.loc["p0", "is_within"]
    assert by_policy.loc["p1", "is_within"] and by_policy.loc["p2", "is_within"]
    ranking = errors.attrs["ranking"].iloc[0]
    assert (ranking["num_told"], ranking["num_agreeing"]) == (3, 2)
    assert ranking["kendall"] == pytest.approx(1 / 3) and ranking["spearman"] == pytest.approx(0.5)


def test_ranks_that_real_runs_cannot_tell_ask_nothing_of_the_simulation() -> None:
    ranking = analysis.fidelity(_lives((1.0, 1.0005, 1.5), (1.01, 1.0, 1.5))).attrs["ranking"].iloc[0]
    assert (ranking["num_told"], ranking["num_agreeing"]) == (2, 2) and ranking["kendall"] == pytest.approx(1 / 3)


def test_a_simulation_in_a_folder_of_its_own_is_compared_too(tmp_path: Path) -> None:
    for name, life in (("real", False), ("sim", True)):
        write_policies(tmp_path / name, policies=("fcfs", "sjf"), rates=(8,), lives=(life,), repeats=2, num_requests=16)
    errors = analysis.fidelity(analysis.load([tmp_path / "real", tmp_path / "sim"]))
    assert set(errors["policy"]) == {"fcfs", "sjf"} and errors["error"].abs().max() < 1e-9


def test_capacity_is_the_best_rate_that_met_the_slo_and_the_next_that_did_not(swept: analysis.Sweep) -> None:
    found = analysis.capacity(swept)
    assert found["label"].tolist() == [f"scheduler={p}, seed=1" for p in ("srpt", "sjf", "fcfs")]
    assert found["capacity_rps"].tolist() == [5.0, 4.0, 3.0] and (found["num_tried"] == 4).all()
    assert found["over_rps"].to_numpy() == pytest.approx([5.25, 4.2, 3.15])


def test_a_point_without_capacity_has_none(tmp_path: Path) -> None:
    write_policies(tmp_path, rates=(8,), policies=("fcfs",), repeats=1, num_requests=8)
    # Without labels, the knobs that differ are one.
    rows = [
        {
            **{"cfg.scheduler": policy, "cfg.seed": 1, "cfg.arrivals.rate_rps": rate, "rate_rps": rate},
            "slo_attainment_fraction": 0.1 if policy == "fcfs" else 1.0,
            "is_capacity": policy == "sjf" and rate == 2,
        }
        for policy in ("fcfs", "sjf")
        for rate in (1.0, 2.0)
    ]
    write_table(tmp_path / "capacity" / "capacity.parquet", rows)
    found = analysis.capacity(analysis.load(tmp_path)).set_index("label")
    assert np.isnan(found.loc["scheduler=fcfs", "capacity_rps"]) and found.loc["scheduler=fcfs", "over_rps"] == 1
    assert found.loc["scheduler=sjf", "capacity_rps"] == 2 and np.isnan(found.loc["scheduler=sjf", "over_rps"])
    write_table(tmp_path / "capacity" / "capacity.parquet", [{"rate_rps": 1.0}])
    with pytest.raises(ValueError, match="lacks the columns slo_attainment_fraction, is_capacity"):
        analysis.capacity(analysis.load(tmp_path))


def test_tails_by_client_are_over_all_repeats(swept: analysis.Sweep) -> None:
    tails = client_tails(swept)
    requests = swept.requests
    first = tails.iloc[0]
    own = requests[requests["run_id"].str.startswith(first["point_id"])]
    each = own.groupby("client_id")["ttft_s"].quantile(0.9)[own.groupby("client_id").size() >= 10]
    assert (first["best"], first["worst"]) == pytest.approx((each.min(), each.max()))
    assert first["num_clients"] == len(each)


def test_reports_say_who_wins_and_how_true_a_simulation_is(
    both_lives: analysis.Sweep, swept: analysis.Sweep, found: Scheduling
) -> None:
    said = Answer(verdicts=(), changes=None, sentences=found.sentences, scheduling=found)
    text = markdown(swept, analysis.points(swept), {}, said)
    for head in ("## Scheduling", "### Who wins: workload=chat", "### All policies", "### Capacity within the SLO"):
        assert head in text
    assert "highest rate within the SLO is **5 req/s** by scheduler=srpt, seed=1" in text
    shown = answer(both_lives)
    assert any(line.startswith("Simulated against real: **") for line in shown.sentences)
    assert any("simulated" in line for line in shown.caveats)
    console = Console(file=io.StringIO(), width=150)
    assert shown.scheduling is not None
    print_scheduling(shown.scheduling, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Simulated against real" in printed and "Ranking of policies" in printed and OFF in printed


def test_every_plot_of_policies_is_drawn_everywhere(
    swept: analysis.Sweep, found: Scheduling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Answer(verdicts=(), changes=None, sentences=found.sentences, scheduling=found)
    points = analysis.points(swept)
    text = page(swept, points, said)
    assert set(found.specs) >= {
        *(f"scheduling-{name}" for name in ("ttft", "itl", "e2e", "normalized", "goodput", "cdf", "fairness")),
        *("scheduling-clients", "scheduling-capacity"),
    }
    for name, spec in found.specs.items():
        assert f'data-name="{name}"' in text
        json.dumps(spec, allow_nan=False)
    monkeypatch.setattr(plots, "PLOTS", {})
    drawn = write_plots(swept, points, tmp_path, found)
    assert set(drawn) == {"scheduling", "scheduling_closer", "capacity", "lanes"}
    few = {name: found.specs[f"scheduling-{name}"] for name in ("ttft", "cdf", "clients")}
    made = write_figures(swept, points, replace(said, scheduling=replace(found, specs=few)), tmp_path / "svg")
    assert {*(f"{name}.svg" for name in few), "lanes.svg"} <= {path.name for path in made}


def test_a_policy_has_one_look_in_all_plots(found: Scheduling) -> None:
    looks: dict[str, set[int]] = {}
    for spec in found.specs.values():
        for panel in spec["panels"]:
            for one in panel["series"]:
                looks.setdefault(one["name"].partition(",")[0], set()).add(one["look"])
    assert looks == {"fcfs": {0}, "sjf": {1}, "srpt": {2}}


def test_old_folders_without_the_new_columns_still_report(swept: analysis.Sweep) -> None:
    new = [name for name in DESCRIPTIONS["runs"] if name in swept.runs]
    old = replace(
        swept,
        runs=swept.runs.drop(columns=new),
        requests=swept.requests.drop(columns=[c for c in DESCRIPTIONS["requests"] if c in swept.requests]),
    )
    frame = scheduling(old)
    assert len(frame) == 12 and "jain_fairness_fraction" not in frame and set(_FIGURES) <= set(frame)
    made = scheduling_answer(old)
    assert made is not None and any(table.title.startswith("Who wins") for table in made.tables)


def test_every_new_column_is_read_and_described() -> None:
    for table, described in DESCRIPTIONS.items():
        assert set(described) <= set(TABLES[table])
        assert all(text.endswith(".") for text in described.values())
    assert metric_of("jain_fairness_fraction").definition == DESCRIPTIONS["runs"]["jain_fairness_fraction"]
