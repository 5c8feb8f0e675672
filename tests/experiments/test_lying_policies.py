"""A policy that breaks a rule is caught with its name and the rule, on a real engine and on a simulated one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import analysis

LIES = {
    "Drops": "progress",
    "Overspends": "token budget",
    "Revives": "known requests",
    "NotANumber": "keys",
    "WaitsForever": "waits that end",
}


def test_a_lie_is_named_in_both_lives(cli: Callable[..., int], tmp_path: Path) -> None:
    code = cli(
        "sweep",
        "experiment=null",
        "execution=cpu,simulated",
        f"scheduler._target_={','.join(f'lying_policies.{name}' for name in LIES)}",
        "scheduler.max_num_batched_tokens=6",
        "sweep.name=lies",
    )
    assert code == 1
    runs = analysis.load(tmp_path / "lies").runs
    assert len(runs) == 2 * len(LIES)
    for _, run in runs.iterrows():
        name = run["cfg.scheduler"].rpartition(".")[2]
        assert run["error_type"] == "PolicyError", run["error_message"]
        assert run["error_message"].startswith(f"scheduler={name}: breaks the rule of {LIES[name]}: ")
        # Nothing of a run that did not come to its end lies about.
        assert not list((tmp_path / "lies" / "steps").glob(f"*{run['run_id']}*"))
