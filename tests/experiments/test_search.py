"""Search: it finds the best points of a space without running all, and a killed one ends like an unbroken one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from experiments import search
from experiments.errors import CommandError
from experiments.search import plan_search

Cli = Callable[..., int]
# 18 points. What is aimed at depends on no clock, so that the same points must be chosen again.
SPACE = (
    *("experiment=null", "cache.block_size=4,8,16", "scheduler.max_num_seqs=range(1,4)", "scheduler=fcfs,static"),
    *("search.maximize=[kv_utilization_mean_fraction]", "search.minimize=[kv_fragmentation_mean_fraction]"),
)


def _chosen(folder: Path) -> dict[str, Any]:
    """Run id -> when it started."""
    runs = pd.read_parquet(folder / "run" / "runs")
    return dict(zip(runs["run_id"], runs["started_at"], strict=True))


@pytest.mark.slow
def test_a_search_that_is_interrupted_ends_with_the_same_points(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = ("search.num_trials=13", "search.batch_size=2")
    assert cli("search", *SPACE, *trials, f"sweep.folder={tmp_path / 'unbroken'}") == 0
    printed = capsys.readouterr().out
    assert "13 trials of 18 points" in printed and "\nbest    " in printed
    unbroken = _chosen(tmp_path / "unbroken")
    assert len(unbroken) < 18

    # It ends as Ctrl-C or a kill would: between two runs, with some trials told and some not.
    broken = tmp_path / "broken"
    tell, told = search._Search._tell, []

    def tell_seven(self: Any, *rest: Any) -> None:
        told.append(rest)
        if len(told) == 7:
            raise KeyboardInterrupt
        tell(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(search._Search, "_tell", tell_seven)
        assert cli("search", *SPACE, *trials, f"sweep.folder={broken}") == 130
    before = _chosen(broken)
    assert 0 < len(before) < len(unbroken)
    assert cli("search", *SPACE, *trials, f"sweep.folder={broken}") == 0
    after = _chosen(broken)
    assert set(after) == set(unbroken)
    assert before.items() <= after.items(), "a point was run again"


def test_two_aims_have_a_frontier_and_a_small_space_is_tried_whole(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = ("experiment=null", "cache.block_size=4,8", "search.sampler=random", "search.num_trials=30")
    aims = ("search.maximize=[kv_utilization_mean_fraction]", "search.minimize=[num_prompt_tokens]")
    assert cli("search", *space, *aims) == 0
    printed = capsys.readouterr().out
    assert "all 2 points are tried" in printed
    # The number of tokens is the same, so that one point is best in both.
    best = [line for line in printed.splitlines() if line.startswith("best")]
    runs = pd.read_parquet(tmp_path / "run" / "runs").sort_values("kv_utilization_mean_fraction")
    assert len(best) == 1
    assert f"cache.block_size={runs['cfg.cache.block_size'].iloc[-1]}: kv_utilization_mean_fraction" in best[0]


def test_points_that_fail_teach_nothing_and_end_nothing(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = "scheduler._target_=components.Raises,minivllm.scheduler.fcfs.FCFS"
    assert cli("search", "experiment=null", policies, "search.num_trials=20", "search.minimize=[perplexity]") == 1
    printed = capsys.readouterr().out
    assert "perplexity is null, so the search learns nothing of it" in printed
    assert sorted(pd.read_parquet(tmp_path / "run" / "runs")["status"]) == ["error", "ok"]


def test_numbers_in_order_are_near_each_other_and_names_are_not() -> None:
    plan = plan_search(list(SPACE))
    trial = optuna.create_study().ask()
    search._choose(trial, plan.experiment.axes)
    kinds = {key: type(kind).__name__ for key, kind in trial.distributions.items()}
    assert kinds == {
        "cache.block_size": "IntDistribution",
        "scheduler.max_num_seqs": "IntDistribution",
        "scheduler": "CategoricalDistribution",
    }


def test_the_search_is_no_part_of_a_point() -> None:
    plans = [plan_search([*SPACE, f"search.seed={seed}"]) for seed in (0, 1)]
    chosen = dict.fromkeys((axis.key for axis in plans[0].experiment.axes), 0)
    assert plans[0].jobs(chosen)[0].run_id == plans[1].jobs(chosen)[0].run_id


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.sampler=tpo", "search.sampler='tpo': must be tpe, nsga2, random"),
        ("search.num_trials=0", "search.num_trials=0: must be a whole number, 1 or more"),
        ("search.maximize=[output_throughput]", "did you mean output_throughput_tps"),
        ("search.maximize=[kv_fragmentation_mean_fraction]", "names a metric, each once"),
        ("search.sampler=tpe,random", "one setting of each of its own keys"),
        ("search.trials=3", "search.trials=3: no such key"),
        ("experiment=quickstart,ablation", "a search has one experiment"),
    ],
)
def test_a_search_that_makes_no_sense_is_one_line(override: str, says: str) -> None:
    given = override.partition("=")[0]
    with pytest.raises(CommandError) as caught:
        plan_search([*(o for o in SPACE if not o.startswith(f"{given}=")), override])
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_to_choose_from_is_one_line(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("search", "experiment=null") == 2
    assert "nothing to choose from; sweep a key" in capsys.readouterr().err
