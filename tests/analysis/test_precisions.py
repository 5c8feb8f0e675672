"""`analysis.precision`: which points are a row, what they are compared with, and the figures, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import analysis

SPEED = "output_throughput_tps"
FEW = (("fp32", None, 8.0, (100, 400), 0.0, 0.0), ("int8", 8.5, 2.0, (200, 500), 0.004, 0.001))


def _items(nats: Sequence[float], kl: Sequence[float], right: Sequence[bool]) -> list[dict[str, Any]]:
    """Windows of 10, 20 and 30 tokens, two prompts of four tokens, and tasks."""
    empty = dict.fromkeys(("nll_sum_nats", "kl_sum_nats", "top1_matches", "top1_flips", "token_matches"))
    empty |= dict.fromkeys(("first_divergence", "task", "task_correct"))
    tokens = (10, 20, 30)
    text = [
        {"num_tokens": n, "nll_sum_nats": s, "kl_sum_nats": k, "top1_matches": n - 2, "top1_flips": 1}
        for n, s, k in zip(tokens, nats, kl, strict=True)
    ]
    said = [{"num_tokens": 4, "token_matches": m, "first_divergence": d} for m, d in ((4, None), (1, 1))]
    tasks = [{"num_tokens": None, "task": "next", "task_correct": one} for one in right]
    return [
        {"item_id": f"{kind}-{i}", "kind": kind, **empty, **row}
        for kind, rows in (("text", text), ("generation", said), ("task", tasks))
        for i, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory, make_sweep: Callable[..., Path]) -> pd.DataFrame:
    points = [
        {
            "quantization": "none",
            "tps": [100, 110, 120],
            "columns": {"weights_bytes": 4000, "tpot_p50_s": 0.01},
            "quality": _items((20.0, 40.0, 60.0), (0.0, 0.0, 0.0), (True, True, False, True)),
        },
        {
            "quantization": "int8",
            "tps": [200, 231, 228],
            "columns": {"weights_bytes": 1000, "bits_per_weight": 8.5, "quantization": "int8", "tpot_p50_s": 0.005},
            "quality": _items((21.0, 41.0, 64.0), (1.0, 2.0, 3.0), (True, False, False, False)),
        },
    ]
    folder = make_sweep(tmp_path_factory.mktemp("hand") / "sweep", points, repeats=3, num_requests=3)
    return analysis.precision(analysis.load(folder))


def test_figures_are_those_worked_out_by_hand(by_hand: pd.DataFrame) -> None:
    base, int8 = by_hand.iloc[0], by_hand.iloc[1]
    assert list(by_hand["label"]) == ["quantization=none", "quantization=int8"]
    assert list(by_hand["is_baseline"]) == [True, False] and set(by_hand["baseline"]) == {"quantization=none"}
    assert (int8["bits_per_weight"], int8["weights_bytes_ratio"], int8["quantization"]) == (8.5, 0.25, "int8")
    assert base["perplexity"] == pytest.approx(math.exp(2)) and int8["perplexity"] == pytest.approx(math.exp(2.1))
    assert int8["kl_mean_nats"] == pytest.approx(0.1)
    assert int8["top1_agreement_fraction"] == pytest.approx(0.9)
    assert int8["top1_flip_fraction"] == pytest.approx(0.05)
    assert int8["token_agreement_fraction"] == pytest.approx(5 / 8)
    assert int8["first_divergence_mean_tokens"] == 2.5, "as the run says"
    assert (base["task_score_fraction"], int8["task_score_fraction"]) == (0.75, 0.25)
    assert int8["task_score_fraction_difference"] == -0.5 and int8["task_score_p"] == 0.5
    assert int8["quality_num_tokens"] == 60 and int8["num_repeats"] == 3


def test_perplexities_are_compared_window_by_window_and_weighed_by_tokens(by_hand: pd.DataFrame) -> None:
    # Sums of differences 1, 1, 4 over 10, 20, 30 tokens: 0.1 a token; without each window 0.1, 0.125, 0.2 / 3.
    int8 = by_hand.iloc[1]
    error = math.sqrt(2 / 3 * (0.0**2 + 0.025**2 + (0.1 - 0.2 / 3) ** 2))
    reach = stats.t.ppf(0.975, 2) * error
    found = [int8[f"perplexity_ratio{end}"] for end in ("", "_low", "_high")]
    assert found == pytest.approx([math.exp(0.1), math.exp(0.1 - reach), math.exp(0.1 + reach)], rel=1e-9)


def test_speeds_are_compared_repeat_by_repeat(by_hand: pd.DataFrame) -> None:
    logs = np.log([2.0, 2.1, 1.9])
    reach = stats.t.ppf(0.975, 2) * logs.std(ddof=1) / math.sqrt(3)
    found = [by_hand[f"{SPEED}_ratio{end}"].iloc[1] for end in ("", "_low", "_high")]
    assert found == pytest.approx(np.exp([logs.mean(), logs.mean() - reach, logs.mean() + reach]), rel=1e-9)
    assert by_hand[SPEED].iloc[1] == pytest.approx((200 + 231 + 228) / 3)


def test_a_baseline_against_itself_leaves_nothing_to_chance(by_hand: pd.DataFrame) -> None:
    base = by_hand.iloc[0]
    for name in ("perplexity_ratio", f"{SPEED}_ratio", "weights_bytes_ratio"):
        assert base[name] == 1
    assert base["task_score_fraction_difference_low"] == base["task_score_fraction_difference_high"] == 0


def test_ratios_of_speed_are_those_of_compare(precisions: analysis.Sweep) -> None:
    table = analysis.precision(precisions).set_index("label")
    compared = analysis.compare(precisions, baseline="variant=fp32", within=["concurrency"])
    for _, row in compared.iterrows():
        name, _, size = row["label"].partition(", concurrency=")
        assert table.at[name, f"{SPEED}_ratio_high@{size}"] == pytest.approx(row["ratio_high"], rel=1e-12)


def test_planted_effects_lie_within_their_intervals(precisions: analysis.Sweep) -> None:
    table = analysis.precision(precisions).set_index("label")
    assert table.attrs["sizes"] == [1, 8, 32] and table.attrs["batch"] == "cfg.workload.concurrency"
    planted = {"int8": (1.9, 0.001, 8e-4), "int8_dynamic": (1.85, 0.004, 4e-3), "int4_gptq": (2.9, 0.02, 0.02)}
    found = {
        label: [
            *(row[f"{SPEED}_ratio_{end}@1"] for end in ("low", "high")),
            *(row[f"{name}_{end}"] for name in ("perplexity_ratio", "kl_mean_nats") for end in ("low", "high")),
        ]
        for label, row in table.iterrows()
    }
    inside = []
    for name, (speed, cost, kl) in planted.items():
        ends = found[name]
        inside += [
            low < truth < high
            for truth, low, high in zip((speed, math.exp(cost), kl), ends[::2], ends[1::2], strict=True)
        ]
    # Of nine intervals of 95 % one may well miss.
    assert sum(inside) >= 8
    # And they are narrow enough to tell the three apart.
    assert all(found["int8"][i + 1] < found["int4_gptq"][i] for i in (0, 2, 4))


def test_the_frontier_is_what_nothing_beats_in_speed_and_divergence(precisions: analysis.Sweep) -> None:
    table = analysis.precision(precisions)
    front = {size: set(table.loc[table[f"on_front@{size}"], "label"]) for size in (1, 32)}
    assert front[1] == {"fp32", "bf16", "int8", "int4_gptq"}
    assert front[32] == {"fp32", "int8", "int8_dynamic"}, "what is slower than fp32 has nothing to offer"


@pytest.mark.parametrize("axis", ["workload.concurrency", "scheduler.max_num_seqs", "workload.request_rate_rps"])
def test_any_knob_of_the_load_is_a_batch_size(
    tmp_path: Path, make_quality_sweep: Callable[..., Path], axis: str
) -> None:
    folder = make_quality_sweep(tmp_path / "sweep", precisions=FEW, sizes=(2, 16), axis=axis, details=False)
    table = analysis.precision(analysis.load(folder))
    assert list(table["label"]) == ["fp32", "int8"]
    assert table[f"{SPEED}_ratio@2"].iloc[1] == pytest.approx(2, rel=0.1)
    assert table[f"{SPEED}_ratio@16"].iloc[1] == pytest.approx(1.25, rel=0.1)


def test_without_a_batch_size_columns_have_no_size(tmp_path: Path, make_quality_sweep: Callable[..., Path]) -> None:
    folder = make_quality_sweep(tmp_path / "sweep", precisions=FEW, sizes=(None,), details=False)
    table = analysis.precision(analysis.load(folder))
    assert table[f"{SPEED}_ratio"].iloc[1] == pytest.approx(2, rel=0.1) and table["on_front"].all()


def test_what_follows_the_batch_size_makes_no_rows_of_its_own(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [
        {
            "quantization": name,
            "workload.num_requests": 4 * size,
            "workload.concurrency": size,
            "scheduler.max_num_seqs": 2 * size,
        }
        for name in ("none", "int8")
        for size in (1, 8)
    ]
    table = analysis.precision(analysis.load(make_sweep(tmp_path / "sweep", points, details=False)))
    assert list(table["label"]) == ["quantization=none", "quantization=int8"]
    assert table.attrs["sizes"] == [1, 8] and table.attrs["batch"] == "cfg.workload.concurrency"


def _grid(make_sweep: Callable[..., Path], folder: Path, lossy: str, values: Sequence[Any], **options: Any) -> Path:
    points = [
        {"scheduler": scheduler, lossy: value, "workload.concurrency": size, "tps": size * tps * (1 + place)}
        for scheduler, tps in (("fcfs", 100), ("static", 50))
        for place, value in enumerate(values)
        for size in (1, 8)
    ]
    return make_sweep(folder, points, details=False, **options)


@pytest.mark.parametrize("lossy", ["quantization", "kv_compression", "execution.dtype"])
def test_other_knobs_make_rows_and_each_setting_of_them_has_its_baseline(
    tmp_path: Path, make_sweep: Callable[..., Path], lossy: str
) -> None:
    folder = _grid(make_sweep, tmp_path / "sweep", lossy, ("none", "a", "b"))
    table = analysis.precision(analysis.load(folder))
    name = lossy.split(".")[-1]
    assert len(table) == 6 and table["is_baseline"].sum() == 2
    row = table[table["label"] == f"scheduler=static, {name}=b"].iloc[0]
    assert row["baseline"] == f"scheduler=static, {name}=none" and row[f"{SPEED}_ratio@8"] == pytest.approx(3)


def test_a_lossy_knob_that_nobody_knows_is_compared_with_the_first(
    tmp_path: Path, make_sweep: Callable[..., Path]
) -> None:
    points = [{"cache.keep_fraction": keep, "workload.concurrency": size} for keep in (1.0, 0.5) for size in (1, 8)]
    table = analysis.precision(analysis.load(make_sweep(tmp_path / "sweep", points, details=False)))
    assert set(table["baseline"]) == {"keep_fraction=1"}


@pytest.mark.parametrize("spec", ["quantization=int8", {"quantization": "int8"}])
def test_a_baseline_may_be_named_and_holds_what_else_differs(
    tmp_path: Path, make_sweep: Callable[..., Path], spec: Any
) -> None:
    sweep = analysis.load(_grid(make_sweep, tmp_path / "sweep", "quantization", ("none", "int8")))
    table = analysis.precision(sweep, baseline=spec).set_index("label")
    assert table.at["scheduler=static, quantization=none", f"{SPEED}_ratio@1"] == pytest.approx(0.5)
    table = analysis.precision(sweep, baseline="quantization=int8,scheduler=fcfs").set_index("label")
    assert table.at["scheduler=static, quantization=none", f"{SPEED}_ratio@1"] == pytest.approx(0.25)


def test_a_baseline_or_batch_size_that_is_none_is_one_line(precisions: analysis.Sweep) -> None:
    for options, said in (({"baseline": "variant=fp64"}, "fits no point"), ({"batch": "size"}, "no such knob")):
        with pytest.raises(ValueError, match=said) as error:
            analysis.precision(precisions, **options)
        assert "\n" not in str(error.value)


def test_a_setting_that_lacks_its_baseline_has_no_ratios(tmp_path: Path, make_sweep: Callable[..., Path]) -> None:
    points = [
        {"scheduler": scheduler, "quantization": name}
        for scheduler, name in (("fcfs", "none"), ("fcfs", "int8"), ("static", "int8"))
    ]
    table = analysis.precision(analysis.load(make_sweep(tmp_path / "sweep", points, details=False)))
    assert table["baseline"].isna().tolist() == [False, False, True]
    assert math.isnan(table[f"{SPEED}_ratio"].iloc[2]) and table[f"{SPEED}_ratio"].iloc[1] == 1


def test_points_that_failed_leave_what_others_tell(tmp_path: Path, make_quality_sweep: Callable[..., Path]) -> None:
    # All of fp32 at the first size, and the repeat of int8 there that had its quality.
    failed = {(0, 0): "error", (0, 1): "error", (0, 2): "timeout", (1, 0): "crashed"}
    folder = make_quality_sweep(tmp_path / "sweep", precisions=FEW, sizes=(1, 8), failed=failed, details=False)
    table = analysis.precision(analysis.load(folder))
    assert table[f"{SPEED}@1"].isna().tolist() == [True, False] and table[f"{SPEED}_ratio@1"].isna().all()
    assert table[f"{SPEED}_ratio@8"].iloc[1] == pytest.approx(1.25, rel=0.1)
    assert table["perplexity_ratio"].iloc[1] == pytest.approx(math.exp(0.004), rel=1e-3), "as the other size has it"


def test_runs_tell_quality_where_its_table_is_lost(tmp_path: Path, make_quality_sweep: Callable[..., Path]) -> None:
    folder = make_quality_sweep(tmp_path / "sweep", precisions=FEW, sizes=(None,), details=False)
    whole = analysis.precision(analysis.load(folder))
    for path in (folder / "quality").iterdir():
        path.unlink()
    table = analysis.precision(analysis.load(folder))
    for name in ("perplexity", "perplexity_ratio", "kl_mean_nats", "task_score_fraction", "token_agreement_fraction"):
        assert table[name].tolist() == pytest.approx(whole[name].tolist())
        assert math.isnan(table[f"{name}_low"].iloc[1]) and not math.isnan(whole[f"{name}_low"].iloc[1])


def test_a_sweep_without_quality_still_has_its_speeds(ablation: analysis.Sweep, tmp_path: Path) -> None:
    table = analysis.precision(ablation)
    assert table[f"{SPEED}_ratio"].iloc[1] == pytest.approx(0.81, abs=0.01)
    assert table["perplexity"].isna().all() and table.attrs["caveats"] == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "broken.parquet").write_bytes(b"")
    assert analysis.precision(analysis.load(tmp_path)).empty
