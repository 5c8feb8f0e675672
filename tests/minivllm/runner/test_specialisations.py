"""What the warm-up compiles is all that any step will need, as far as Triton's own view of the launches tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("block_size", "batch_invariant", "dtype"),
    [(16, False, "float16"), (256, False, "float32"), (16, True, "float16")],
    ids=["B16-fp16", "B256-fp32", "B16-fp16-invariant"],
)
def test_no_step_launches_what_the_warm_up_did_not(
    block_size: int, batch_invariant: bool, dtype: str, tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "tests/support"))
    finished = subprocess.run(
        [
            sys.executable,
            ROOT / "tests" / "support" / "recorded_launches.py",
            tmp_path,
            str(block_size),
            str(batch_invariant),
            dtype,
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    *late, warm = finished.stdout.splitlines()
    assert not late
    assert int(warm.removeprefix("warm: ")) >= 20
