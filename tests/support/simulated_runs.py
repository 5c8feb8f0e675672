"""A run in this process: composed, simulated, and made into a row and its requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.measurement import Measurement
from experiments.plan import plan_sweep
from experiments.points import freeze
from minivllm.llm import LLM


def simulate(overrides: Sequence[str], folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """(columns of `runs`, measured rows of `requests`) of the one point that overrides compose.

    Args:
        overrides: beside execution=simulated.
        folder: an empty one.
    """
    (job,) = plan_sweep(["execution=simulated", "tracking=none", *overrides], single=True).jobs
    settings = freeze(job.config)
    work = Measurement(settings, LLM.from_config(settings.engine), folder, job.run_id)
    work.warm_up()
    driven = work.measure(lambda *_: None)
    columns = work.columns(driven, None)
    work.close()
    requests = pd.read_parquet(folder / "requests" / f"{job.run_id}.parquet")
    return columns, requests[~requests["warmup"]]
