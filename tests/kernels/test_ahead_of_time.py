"""Every Triton kernel compiles for the GPUs that it is written for, on this machine that has none, within its budget.

MINIVLLM_TRITON_DIR in the environment names another Triton to do it with; see scripts/compile_kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

ROOT = Path(__file__).resolve().parent.parent.parent
OPERATIONS = sorted(path.parent.name for path in (ROOT / "kernels" / "minivllm_kernels").glob("*/kernel.py"))


def _run(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/compile_kernels", "--jobs", "1", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def _compiled(folder: Path, *args: str) -> list[dict[str, Any]]:
    finished = _run("--json", folder / "rows.json", *args)
    assert finished.returncode == 0, finished.stderr
    report = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    if other := os.environ.get("MINIVLLM_TRITON_DIR"):
        assert list(Path(other).glob(f"triton-{report['triton']}.dist-info")), f"{report['triton']} compiled"
    return report["rows"]


def test_there_are_kernels_to_compile() -> None:
    assert {"linear", "prepare_inputs", "rms_norm", "rotary_and_cache", "silu_and_mul"} <= set(OPERATIONS)


def test_one_specialisation_compiles_for_hopper(tmp_path: Path) -> None:
    (row,) = _compiled(tmp_path, "--only", "prepare_inputs-store", "--architecture", "90")
    assert row["op"] == "prepare_inputs" and row["architecture"] == 90 and row["registers"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_specialisation_compiles_within_its_budget(operation: str, tmp_path: Path) -> None:
    rows = _compiled(tmp_path, "--only", operation)
    assert {row["op"] for row in rows} == {operation}
    # Ampere does not multiply 8-bit floats.
    assert {row["architecture"] for row in rows} == ({90} if operation == "fp8_linear" else {80, 90})


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    finished = _run("--only", "atention*")
    assert finished.returncode == 1 and "--only atention* matches no" in finished.stderr


def test_a_folder_without_triton_is_an_error(tmp_path: Path) -> None:
    finished = _run(MINIVLLM_TRITON_DIR=str(tmp_path))
    assert finished.returncode == 1 and f"MINIVLLM_TRITON_DIR={tmp_path} holds no triton" in finished.stderr


# What stands in a file of its own: Triton reads a kernel's source.
_PROBE = """
import dataclasses
import torch
import triton
import triton.language as tl
from minivllm_kernels.ahead_of_time import broken_budgets, compile_ahead, launches_of

@triton.jit(do_not_specialize=["count"])
def double(x_ptr, out_ptr, count, one, sixteen, scale, absent, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)
    x = tl.load(x_ptr + offs, mask=offs < count)
    tl.store(out_ptr + offs, x * scale * one + sixteen, mask=offs < count)

def launch(x, out, *, sixteen):
    double[(1,)](x, out, 32, 1, sixteen, 2.0, None, SIZE=64, num_warps=2)

half = torch.empty(65, dtype=torch.float16, device="meta")
(found,) = launches_of("double", launch, half[1:], half.float(), sixteen=48)
assert found.kernel is double and (found.name, found.num_warps, found.num_stages) == ("double", 2, 3)
assert found.types == {"x_ptr": "*fp16", "out_ptr": "*fp32", "count": "i32", "sixteen": "i32", "scale": "fp32"}
assert found.constants == {"one": 1, "absent": None, "SIZE": 64}
# x starts two bytes late, and counts are not looked at.
assert found.aligned == ("out_ptr", "sixteen")
compiled = compile_ahead(found, 90)
assert broken_budgets(found, compiled) == []
assert broken_budgets(dataclasses.replace(found, wgmma=True), compiled) == ["has no wgmma"]
spilled = dataclasses.replace(compiled, spill_bytes=8)
assert broken_budgets(found, spilled) == ["spills 8 bytes, 0 allowed"]
assert broken_budgets(dataclasses.replace(found, max_spill_bytes=8), spilled) == []
"""


def test_a_recorded_launch_is_specialised_as_triton_does_it(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(_PROBE, encoding="utf-8")
    other = os.environ.get("MINIVLLM_TRITON_DIR")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*([other] if other else []), str(ROOT / "kernels")])}
    environment.pop("TRITON_INTERPRET", None)
    finished = subprocess.run([sys.executable, tmp_path / "probe.py"], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
