"""What must never happen, made to happen: the report names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis.caveats import caveats
from experiments.cli import main

Cli = Callable[..., int]
LONG = ("workload.min_prompt_tokens=9", "workload._target_=components.WarmsUpOnMeasured")


def test_a_warm_up_on_measured_prompts_is_named_in_the_report(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("run", *LONG, "+workload.keep_cache=false") == 0
    (run_id,) = pd.read_parquet(tmp_path / "run" / "runs")["run_id"]
    says = f"Contamination: the warm-up had 2 of the measured prompts too, in 1 of 1 runs ({run_id})"
    assert says in capsys.readouterr().out
    report = (tmp_path / "run" / "report.md").read_text()
    assert says in report and "first step" not in report


def test_a_prefix_cache_that_the_warm_up_filled_is_named_in_the_report(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("run", *LONG, "+workload.keep_cache=true") == 0
    printed = capsys.readouterr().out
    # Two clients in the first step, each with two full blocks of a prompt of 9 to 11 tokens.
    assert "Contamination: 2 requests of a measurement's first step found 16 prompt tokens in the prefix" in printed
    assert "nothing measured can have put them there" in (tmp_path / "run" / "report.md").read_text()


def test_a_run_that_warms_up_as_it_should_proves_it(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    shared = (
        "workload=shared_prefix",
        "workload.prompts=random",
        "workload.num_requests=8",
        "workload.concurrency=2",
        "workload.num_prefixes=1",
        "workload.prefix_tokens=16",
        "workload.max_output_tokens=16",
    )
    others = [override for override in tiny if not override.startswith("workload")]
    assert main(["run", *others, *shared, f"sweep.folder={tmp_path}"]) == 0
    requests = pd.read_parquet(tmp_path / "run" / "requests")
    assert requests["prompt_sha256"].notna().all()
    warm, measured = (set(requests.loc[requests["warmup"] == side, "prompt_sha256"]) for side in (True, False))
    assert len(warm) == 2 and not warm & measured
    # Later requests do hit, and what was measured explains them.
    assert requests.loc[~requests["warmup"], "num_cached_tokens"].sum() > 0
    sweep = analysis.load(tmp_path / "run")
    assert not [line for line in caveats(sweep, analysis.points(sweep)) if "Contamination" in line]


def test_a_machine_that_grows_slower_is_named_in_the_report(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = ("scheduler._target_=components.Paced", "+scheduler.step_s=0.004", "+scheduler.drift=0.15")
    sweep = ("sweep", "experiment=null", "cache.block_size=4,8,16", "repeats=4", *slower)
    assert cli(*sweep, f"+scheduler.notes={tmp_path}/notes") == 0
    says = "Drift: Output changed by -"
    assert says in capsys.readouterr().out
    assert says in (tmp_path / "run" / "report.md").read_text()
