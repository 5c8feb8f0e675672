"""Model folders that are not what they should be, through the whole harness: one row, one line, exit code 1."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from experiments.cli import main
from experiments.points import ASSETS


def _run(folder: Path, model: Path) -> tuple[int, dict[str, object]]:
    code = main(
        ["run", "model=hf", f"model.path={model}", "workload=closed_loop", "workload.num_requests=1", "tracking=none",
         "sweep.measure_peaks=false", "execution.num_threads=1", f"sweep.folder={folder / 'runs'}"]
    )  # fmt: skip
    (row,) = pd.read_parquet(folder / "runs" / "run" / "runs").to_dict("records")
    return code, row


@pytest.mark.parametrize("kept_bytes", [5, 2_000, 1_000_000])
def test_a_truncated_safetensors_file_is_one_line_that_names_it(
    kept_bytes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(ASSETS / "reference-target", model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept_bytes])
    code, row = _run(tmp_path, model)
    assert code == 1
    assert (row["status"], row["error_type"]) == ("invalid", "ValueError")
    message = str(row["error_message"])
    assert message.startswith(f"{weights}: is truncated or no safetensors file: ") and "\n" not in message
    printed = "".join(capsys.readouterr())
    assert "Traceback" not in printed and "is truncated" in printed.replace("\n", " ")


def test_a_missing_model_folder_is_one_line_that_names_it(tmp_path: Path) -> None:
    code, row = _run(tmp_path, tmp_path / "nowhere")
    assert code == 1 and row["status"] == "invalid"
    assert str(tmp_path / "nowhere") in str(row["error_message"]) and "\n" not in str(row["error_message"])
