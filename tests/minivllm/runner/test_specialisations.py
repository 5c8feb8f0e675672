"""What the warm-up compiles is all that any step will need, as far as Triton's own view of the launches tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--block-size=256", "--dtype=float32", "--quantization=int8_dynamic"],
        ["--batch-invariant"],
        ["--batch-invariant", "--quantization=int8_weight_only"],
        ["--quantization=int4"],
        ["--quantization=fp8"],
        ["--drafter=synthetic", "--length=adaptive"],
        ["--drafter=draft_model", "--block-size=256"],
        ["--drafter=early_exit"],
    ],
    ids=lambda options: "-".join(option.rpartition("=")[2].lstrip("-") for option in options) or "default",
)
def test_no_step_launches_what_the_warm_up_did_not(options: list[str], tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "tests/support"))
    finished = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "recorded_launches.py", tmp_path, *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    *late, warm = finished.stdout.splitlines()
    assert not late
    assert int(warm.removeprefix("warm: ")) >= 20
