"""A model so small that a run takes a fraction of a second, and the command line as a user calls it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments.cli import main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TINY = (
    "model=random",
    "model.shape.vocab_size=64",
    "model.shape.hidden_size=16",
    "model.shape.intermediate_size=32",
    "model.shape.num_hidden_layers=1",
    "model.shape.num_attention_heads=2",
    "model.shape.num_key_value_heads=1",
    "model.shape.head_dim=8",
    "model.shape.max_position_embeddings=128",
    "cache.block_size=4",
    "cache.num_blocks=64",
    "workload=closed_loop",
    "workload.prompts=random",
    "workload.num_requests=4",
    "workload.concurrency=2",
    "workload.min_prompt_tokens=3",
    "workload.max_prompt_tokens=11",
    "workload.min_output_tokens=5",
    "workload.max_output_tokens=9",
    "tracking=none",
    "execution.num_threads=1",
    # Half a second a sweep.
    "sweep.measure_peaks=false",
)


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides of the smallest run."""
    return TINY


@pytest.fixture(scope="session")
def components_folder() -> Path:
    """Where `components.py` lies."""
    return HERE


@pytest.fixture(scope="session")
def what_must_not_move() -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Leaves the columns that depend on neither the clock nor the machine's load, rows in a fixed order."""
    moving = ("_s", "_tps", "_rps", "_at", "load_average", "load_average_end", "process_bytes", "host_fraction")
    # Who waits, and is served beside whom, depends on when each comes.
    moving += ("num_waiting_mean", "service_gap_max_tokens", "jain_fairness_fraction", "fluidity_mean_fraction")

    def keep(frame: pd.DataFrame) -> pd.DataFrame:
        kept = frame[[c for c in frame.columns if c.startswith("cfg.") or not c.endswith(moving)]]
        order = [c for c in ("run_id", "request_id", "step") if c in kept.columns]
        return kept.sort_values(order).reset_index(drop=True)

    return keep


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`minivllm COMMAND ...` in this process, results under `tmp_path`; returns the exit code."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(HERE)])

    def call(command: str, *overrides: str) -> int:
        return main([command, *TINY, f"sweep.folder={tmp_path}", *overrides])

    return call


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """`minivllm sweep ...` in a process and a process group of its own."""

    def call(folder: Path, *overrides: str, cwd: Path = HERE) -> subprocess.Popen[str]:
        paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "experiments", "sweep", "experiment=null", *TINY, f"sweep.folder={folder}"]
        return subprocess.Popen(
            [*command, *overrides],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A test run in the background ignores Ctrl-C, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return call
