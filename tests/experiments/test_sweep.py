"""A sweep from the command line: rows, resuming, the folder it writes to, and parts from outside."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments import tables

Cli = Callable[..., int]


OPEN_LOOP = ("workload.concurrency=null", "+workload.request_rate_rps=50")


def _started(folder: Path) -> dict[str, object]:
    runs = pd.read_parquet(folder / "runs")
    return dict(zip(runs["run_id"], runs["started_at"], strict=True))


def test_rows_add_up_and_times_are_in_order(cli: Cli, tmp_path: Path) -> None:
    assert cli("run", "slo=interactive", "workload._target_=experiments.workloads.poisson.Poisson", *OPEN_LOOP) == 0
    folder = tmp_path / "run"
    (run,) = pd.read_parquet(folder / "runs").to_dict("records")
    everyone = pd.read_parquet(folder / "requests")
    steps = pd.read_parquet(folder / "steps")
    requests = everyone[~everyone["warmup"]]
    assert everyone["warmup"].sum() == 2
    assert (everyone.loc[everyone["warmup"], "finish_s"] < 0).all()
    assert run["num_requests"] == len(requests) == 4
    assert run["num_output_tokens"] == requests["num_output_tokens"].sum()
    order = ["arrival_s", "first_scheduled_s", "first_token_s", "finish_s"]
    assert (requests[order].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    assert (requests["arrival_lateness_s"] >= 0).all()
    assert requests["ttft_s"].to_numpy() == pytest.approx(
        (requests["first_token_s"] - requests["arrival_s"]).to_numpy()
    )
    tpot = (requests["finish_s"] - requests["first_token_s"]) / (requests["num_output_tokens"] - 1)
    assert requests["tpot_s"].to_numpy() == pytest.approx(tpot.to_numpy())
    assert run["ttft_p50_s"] == pytest.approx(requests["ttft_s"].median())
    assert run["output_throughput_tps"] == pytest.approx(run["num_output_tokens"] / run["duration_s"])
    assert run["slo_attainment_fraction"] == pytest.approx(requests["slo_met"].astype(float).mean())
    # Every request gets one token from its prefill; every other token takes a decode.
    assert steps["num_decode_tokens"].sum() == run["num_output_tokens"] - 4
    assert steps["num_prefill_tokens"].sum() == run["num_prompt_tokens"] - requests["num_cached_tokens"].sum()
    assert run["wall_s"] > run["load_s"] + run["duration_s"]
    assert pd.isna(run["energy_j"]) and pd.isna(run["num_draft_tokens"])


def test_chosen_arrivals_and_clients_reach_the_tables(cli: Cli, tmp_path: Path) -> None:
    chosen = ("arrivals=gamma", "arrivals.rate_rps=200", "clients=several", "clients.priorities={3:1}")
    assert cli("run", *chosen, "workload.num_requests=16", "workload.prompts=lengths_only") == 0
    requests = pd.read_parquet(tmp_path / "run" / "requests")
    requests = requests[~requests["warmup"]]
    assert requests["client_id"].nunique() > 1 and set(requests["priority"]) == {3}
    assert requests["arrival_s"].is_monotonic_increasing and requests["arrival_s"].nunique() == 16
    assert requests["arrival_lateness_s"].notna().all()


def test_repeats_pair_and_exact_parts_leave_outputs_alone(cli: Cli, tmp_path: Path) -> None:
    assert cli("sweep", "experiment=null", "scheduler=fcfs,static", "repeat=0,1") == 0
    runs = pd.read_parquet(tmp_path / "run" / "runs").sort_values("order_index")
    assert runs["repeat"].tolist() == [0, 0, 1, 1]
    assert runs.groupby("repeat")["workload_sha256"].nunique().tolist() == [1, 1]
    assert runs["workload_sha256"].nunique() == 2
    requests = pd.read_parquet(tmp_path / "run" / "requests").merge(runs[["run_id", "repeat", "cfg.scheduler"]])
    outputs = requests[~requests["warmup"]].pivot(
        index=["repeat", "request_id"], columns="cfg.scheduler", values="output_sha256"
    )
    assert (outputs["fcfs"] == outputs["static"]).all()


def test_a_complete_point_is_not_run_again_and_a_failed_one_is(cli: Cli, tmp_path: Path) -> None:
    sweep = ("sweep", "experiment=null", "scheduler._target_=minivllm.scheduler.fcfs.FCFS,components.Raises")
    assert cli(*sweep) == 1
    first = _started(tmp_path / "run")
    runs = pd.read_parquet(tmp_path / "run" / "runs").set_index("status")["run_id"]
    assert cli(*sweep) == 1
    again = _started(tmp_path / "run")
    assert again[runs["ok"]] == first[runs["ok"]]
    assert again[runs["error"]] > first[runs["error"]]
    # More axes take up what is there.
    assert cli("sweep", "experiment=null", "scheduler._target_=minivllm.scheduler.fcfs.FCFS", "seed=0,1") == 0
    assert _started(tmp_path / "run")[runs["ok"]] == first[runs["ok"]]


def test_run_runs_again_and_takes_one_point_only(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], what_must_not_move: Callable[..., pd.DataFrame]
) -> None:
    assert cli("run") == 0
    first = pd.read_parquet(tmp_path / "run" / "runs")
    assert cli("run") == 0
    second = pd.read_parquet(tmp_path / "run" / "runs")
    assert (second["started_at"] > first["started_at"]).all()
    pd.testing.assert_frame_equal(what_must_not_move(first), what_must_not_move(second))
    assert cli("run", "seed=1,2") == 2
    assert "minivllm sweep" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["runs", "requests"])
def test_a_corrupt_file_is_set_aside_and_its_run_done_again(
    cli: Cli, tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("sweep", "experiment=null", "seed=0,1") == 0
    folder = tmp_path / "run"
    before = _started(folder)
    broken = sorted((folder / table).iterdir())[0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert cli("sweep", "experiment=null", "seed=0,1") == 0
    assert f"{broken}: not readable as parquet" in capsys.readouterr().out
    assert (folder / "corrupt" / table / broken.name).read_bytes() == whole[: len(whole) // 2]
    after = _started(folder)
    assert [after[run_id] > before[run_id] for run_id in sorted(after)] == [True, False]


def test_leftovers_of_killed_runs_go(cli: Cli, tmp_path: Path) -> None:
    assert cli("sweep", "experiment=null") == 0
    folder = tmp_path / "run"
    (folder / "steps" / ".x.parquet.123.tmp").write_bytes(b"half")
    (row,) = (folder / "steps").glob("*.parquet")
    orphan = folder / "steps" / "ffffffffffff-r0.parquet"
    orphan.write_bytes(row.read_bytes())
    assert cli("sweep", "experiment=null") == 0
    assert list((folder / "steps").iterdir()) == [row]


def test_a_second_sweep_in_the_same_folder_is_told_to_wait(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    lock = os.open(tmp_path / "run" / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli("run") == 1
    finally:
        os.close(lock)
    error = capsys.readouterr().err
    assert "another sweep is writing here" in error and error.count("\n") == 1


def test_an_unusable_results_folder_is_one_line_before_anything_runs(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert cli("run", f"sweep.folder={tmp_path}/file") == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/file/run: results cannot be written" in error and error.count("\n") == 1


def test_a_full_disk_is_one_line_and_what_was_complete_stays(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("sweep", "experiment=null") == 0
    before = _started(tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow past this: the probe fails as it would on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert cli("sweep", "experiment=null", "seed=0,1") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert f"{tmp_path}/run: results cannot be written" in error and error.count("\n") == 1
    assert _started(tmp_path / "run") == before


def test_a_child_that_cannot_write_ends_the_sweep_with_one_line(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = "minivllm.scheduler.fcfs.FCFS"
    assert cli("sweep", "experiment=null", f"scheduler._target_={first},components.FillsTheDisk,components.Sloth") == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/run: results cannot be written" in error and error.count("\n") == 1
    runs = pd.read_parquet(tmp_path / "run" / "runs")
    assert dict(zip(runs["cfg.scheduler"], runs["status"], strict=True)) == {first: "ok"}


def test_a_policy_of_twelve_lines_from_the_current_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = (
        "from minivllm.request import RequestView\n"
        "from minivllm.scheduler.base import SchedulingPolicy\n\n\n"
        "class Shortest(SchedulingPolicy):\n"
        '    """Serve the request with the least predicted work left."""\n\n'
        "    def key(self, request: RequestView, now_s: float) -> tuple[float, ...]:\n"
        "        return (request.predicted_output_tokens - request.num_output_tokens, request.arrival_s)\n"
    )
    assert policy.count("\n") <= 12
    (tmp_path / "my_policies.py").write_text(policy)
    monkeypatch.chdir(tmp_path)
    assert cli("run", "scheduler._target_=my_policies.Shortest") == 0
    assert pd.read_parquet(tmp_path / "run" / "runs")["cfg.scheduler"].tolist() == ["my_policies.Shortest"]


def test_a_part_of_the_users_gets_its_arguments_and_may_refuse_them(cli: Cli, tmp_path: Path) -> None:
    assert cli("sweep", "experiment=null", "scheduler._target_=components.Picky", "+scheduler.alpha=1,0") == 1
    runs = pd.read_parquet(tmp_path / "run" / "runs").set_index("cfg.scheduler.alpha")
    assert runs["status"].to_dict() == {1: "ok", 0: "invalid"}
    assert runs.loc[0, "error_message"] == "scheduler.alpha=0: must be above 0"


def test_logits_that_are_no_numbers_make_an_error_with_tables(cli: Cli, tmp_path: Path) -> None:
    assert cli("run", "attention._target_=components.NanAttention") == 1
    (run,) = pd.read_parquet(tmp_path / "run" / "runs").to_dict("records")
    assert (run["status"], run["error_type"]) == ("error", "RequestError")
    assert "4 of 4 requests failed" in run["error_message"]
    requests = tables.read_table(tmp_path / "run" / "requests" / f"{run['run_id']}.parquet").to_pandas()
    assert set(requests["finish_reason"]) == {"error"}


def test_a_request_that_can_never_fit_is_a_row_with_the_engines_own_words(cli: Cli, tmp_path: Path) -> None:
    assert cli("run", "cache.num_blocks=1", "num_warmup_requests=0") == 1
    (run,) = pd.read_parquet(tmp_path / "run" / "runs").to_dict("records")
    assert run["status"] == "error" and "can never fit" in run["error_message"]


def test_a_missing_model_folder_is_one_line_in_the_row(cli: Cli, tmp_path: Path) -> None:
    assert cli("run", f"model.path={tmp_path}/absent", "model.weights=checkpoint", "model.shape=null") == 1
    (run,) = pd.read_parquet(tmp_path / "run" / "runs").to_dict("records")
    assert run["status"] == "invalid" and "model.path" in run["error_message"] and "\n" not in run["error_message"]
