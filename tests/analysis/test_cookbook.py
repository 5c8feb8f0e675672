"""The cookbook runs from top to bottom, and its cells show what their headings say."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import tables

NOTEBOOK = Path(__file__).resolve().parents[2] / "analysis" / "cookbook.ipynb"


def _make_quickstart(folder: Path) -> None:
    """Two knobs of two values, three repeats, eight requests and steps each."""
    chance = np.random.default_rng(0)
    configs: list[dict[str, Any]] = [
        {"scheduler": {"max_num_seqs": 8}, "cache": {"prefix_caching": cached}, "choices": {"scheduler": scheduler}}
        for scheduler in ("fcfs", "static")
        for cached in (True, False)
    ]
    types = tables.column_types(configs)
    for repeat in range(3):
        for place, config in enumerate(configs):
            run_id = f"{place:012x}-r{repeat}"
            speed = 400 / (1 + place) * chance.normal(1, 0.01)
            row = {"sweep": "quickstart", "run_id": run_id, "point_id": run_id[:12], "repeat": repeat, "status": "ok"}
            row |= {"order_index": 4 * repeat + place, "output_throughput_tps": speed, "kv_blocks_total": 64}
            row |= {"ttft_p50_s": 5 / speed, "ttft_p99_s": 9 / speed, "num_requests": 8}
            requests = [
                {"request_id": i, "warmup": i == 0, "ttft_s": i / speed, "tpot_s": 0.01, "e2e_s": 0.2 + i / speed}
                for i in range(8)
            ]
            steps = [{"step": i, "start_s": 0.1 * i, "kv_blocks_used": i, "kv_blocks_cached": 0} for i in range(8)]
            tables.write_table(folder / "runs" / f"{run_id}.parquet", tables.runs_table(row, config, types))
            for name, rows in (("requests", requests), ("steps", steps)):
                tables.write_table(folder / name / f"{run_id}.parquet", tables.rows_table(name, run_id, rows))


def _run(source: str, names: dict[str, Any]) -> Any:
    """What a notebook would show of a cell: its last expression."""
    body = ast.parse(source)
    last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
    exec(compile(body, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_cookbook_runs_on_a_fresh_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make_quickstart(tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    names: dict[str, Any] = {}
    shown = [_run("".join(c["source"]), names) for c in notebook["cells"] if c["cell_type"] == "code"]
    plt.close("all")
    runs, points, compared, pivot, pareto, effects, quantiles, figure, plots = shown
    assert len(runs) == 12 and len(points) == len(quantiles) == 4
    assert list(points["n"]) == [3] * 4
    assert (compared["verdict"] == "slower").sum() == 3
    assert pivot.shape == (2, 2) and not pivot.isna().any(axis=None)
    assert len(pareto) >= 1
    assert set(effects["kind"]) == {"main", "interaction"}
    assert isinstance(figure, Figure)
    assert "output_throughput" in plots and (tmp_path / "runs/quickstart/plots/output_throughput.png").exists()


def test_the_cookbook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
