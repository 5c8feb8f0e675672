"""Quality in a sweep: measured once a point, against a reference that is made once, and null where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import analysis
from experiments.cli import main

COLUMNS = [
    *("perplexity", "kl_mean_nats", "top1_agreement_fraction", "top1_flip_fraction", "token_agreement_fraction"),
    *("first_divergence_mean_tokens", "task_score_fraction", "task_flip_fraction"),
    *("quality_num_tokens", "quality_s", "reference_s"),
]
SMALL = (
    "experiment=null",
    "model=reference_draft",
    "workload=closed_loop",
    "workload.num_requests=2",
    "workload.min_prompt_tokens=8",
    "workload.max_prompt_tokens=9",
    "workload.min_output_tokens=4",
    "workload.max_output_tokens=5",
    "num_warmup_requests=1",
    "execution.num_threads=1",
    "tracking=none",
    "sweep.measure_peaks=false",
    "quality.num_windows=5",
    "quality.window_tokens=41",
    "quality.num_prompts=3",
    "quality.prompt_tokens=16",
    "quality.output_tokens=8",
    "quality.num_task_items=6",
    "quality.task_context_tokens=40",
)
COARSE = "attention._target_=minivllm.attention.torch_backend.TorchAttention,components.CoarseAttention"
Sweep = Callable[..., int]


@pytest.fixture(scope="module")
def sweep(components_folder: Path) -> Sweep:
    def call(folder: Path, *overrides: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [*sys.path, str(components_folder)])
            return main(["sweep", *SMALL, f"sweep.folder={folder}", *overrides])

    return call


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, sweep: Sweep) -> Path:
    """Two points, one of them lossy, twice each."""
    folder = tmp_path_factory.mktemp("quality")
    assert sweep(folder, COARSE, "repeats=2", "quality.enabled=true", "sweep.order=as_given") == 0
    return folder


def _runs(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "run" / "runs").sort_values("order_index", ignore_index=True)


def test_the_lossy_point_diverges_and_the_other_does_not(swept: Path) -> None:
    exact, coarse = _runs(swept).iloc[:2].to_dict("records")
    assert exact["kl_mean_nats"] < 1e-9 and exact["top1_agreement_fraction"] == 1
    assert exact["token_agreement_fraction"] == 1 and exact["task_flip_fraction"] == 0
    assert coarse["kl_mean_nats"] > 1e-4 and coarse["perplexity"] != exact["perplexity"]
    assert coarse["top1_agreement_fraction"] < 1
    assert {exact["quality_num_tokens"], coarse["quality_num_tokens"]} == {5 * 40}


def test_only_the_first_repeat_has_quality(swept: Path) -> None:
    runs = _runs(swept)
    assert runs["repeat"].tolist() == [0, 0, 1, 1]
    measured = [column for column in COLUMNS if column != "quality_s"]
    assert runs.loc[:1, measured].notna().all(axis=None) and runs.loc[2:, COLUMNS].isna().all(axis=None)
    files = sorted(path.stem for path in (swept / "run" / "quality").glob("*.parquet"))
    assert files == sorted(runs.loc[:1, "run_id"])


def test_the_table_has_a_row_an_item_and_the_same_items_for_both(swept: Path) -> None:
    quality = pd.read_parquet(swept / "run" / "quality")
    ids = quality.groupby("run_id")["item_id"].agg(list)
    assert len(ids) == 2 and ids.iloc[0] == ids.iloc[1]
    assert (
        quality.groupby(["run_id", "kind"]).size().unstack().to_dict("records")
        == [{"generation": 3, "task": 6, "text": 5}] * 2
    )
    expected = quality[quality["kind"] == "task"].groupby("run_id")["task_expected"].agg(list)
    assert expected.iloc[0] == expected.iloc[1]


def test_its_time_and_memory_are_not_the_runs(swept: Path) -> None:
    runs = _runs(swept)
    named = runs[["startup_s", "load_s", "warmup_s", "duration_s", "record_s", "quality_s", "reference_s"]].fillna(0)
    assert (named.sum(axis=1) <= runs["wall_s"] + 1e-6).all() and (runs.loc[:1, "quality_s"] > 0).all()
    # The reference was waited for once.
    assert runs.loc[0, "reference_s"] > 10 * runs.loc[1, "reference_s"]


def test_a_sweep_that_goes_on_keeps_the_reference_and_the_report_reads_all(swept: Path, sweep: Sweep) -> None:
    (reference,) = (swept / "run" / ".reference").iterdir()
    made = reference.stat().st_mtime_ns
    assert sweep(swept, COARSE, "quality.enabled=true", "scheduler.max_num_seqs=5") == 0
    (same,) = (swept / "run" / ".reference").iterdir()
    assert same == reference and same.stat().st_mtime_ns == made
    assert _runs(swept)["perplexity"].notna().sum() == 4
    loaded = analysis.load(swept / "run")
    assert len(loaded.quality) == 4 * 14 and not loaded.warnings
    assert set(loaded.quality["kind"]) == {"text", "generation", "task"}
    assert (swept / "run" / "report.html").exists()


def test_without_quality_there_is_no_table_and_a_reference_that_fails_is_its_points_row(
    tmp_path: Path, sweep: Sweep
) -> None:
    text = tmp_path / "short.jsonl"
    text.write_text('{"path": "a.py", "text": "import os"}\n')
    assert sweep(tmp_path, "quality.enabled=null,true", f"quality.text={text}", "sweep.order=as_given") == 1
    exact, failed = _runs(tmp_path).to_dict("records")
    assert exact["status"] == "ok" and all(pd.isna(exact[column]) for column in COLUMNS)
    assert (failed["status"], failed["error_type"]) == ("invalid", "ValueError")
    assert failed["error_message"].startswith("quality.window_tokens=41: no document of quality.text=")
    assert not (tmp_path / "run" / "quality").exists()
    assert analysis.load(tmp_path / "run").quality.empty
    assert (tmp_path / "run" / "report.html").exists()
