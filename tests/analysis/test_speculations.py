"""Drafters of known acceptance and known costs: what the table, the answer and the plots make of them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import analysis
from analysis.answer import answer
from analysis.caveats import caveats
from analysis.figures import write_figures
from analysis.markdown import markdown
from analysis.page import page
from analysis.plots import write_plots
from analysis.speculation_plots import speculation_specs
from analysis.speculation_table import OFF, SPECULATION, tables_of
from analysis.speculation_words import sentences_of
from analysis.terminal import print_speculation


def _simulate(
    rng: np.random.Generator,
    *,
    clients: int,
    drafting: tuple[int, float] | None = None,
    num_requests: int = 16,
    num_output: int = 40,
    prefill_s: float = 0.02,
    slow_prefill: float = 1.0,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Columns of `runs` and rows of `steps` of a closed loop whose steps cost what they cost.

    Args:
        drafting: k, and the probability that a draft is accepted; None drafts nothing.
        slow_prefill: how much longer a prefill takes where anything is drafted.
    """
    waiting, left, steps, now_s = num_requests, [], [], 0.0
    counts = np.zeros((3, drafting[0] if drafting else 0), dtype=int)
    nothing = dict.fromkeys(("num_draft_tokens", "num_accepted_tokens", "num_verifications", "draft_s", "verify_s"))

    def step(duration_s: float, **columns: Any) -> None:
        nonlocal now_s
        steps.append({"step": len(steps), "start_s": now_s, "duration_s": duration_s, **nothing, **columns})
        now_s += duration_s

    while waiting or left:
        new = min(waiting, clients - len(left))
        if new:
            waiting, left = waiting - new, [*left, *[num_output - 1] * new]
            factor = slow_prefill if drafting else 1.0
            step(new * prefill_s * factor, num_prefill_tokens=32 * new, num_decode_tokens=0)
            continue
        n, plain_s = len(left), 1e-3 * (1 + 0.2 * len(left))
        if drafting is None:
            left = [tokens - 1 for tokens in left]
            step(plain_s, num_prefill_tokens=0, num_decode_tokens=n)
        else:
            accepted, drafted = [], 0
            for tokens in left:
                # The target's own token needs no draft.
                reach = min(drafting[0], tokens - 1)
                kept = next((i for i in range(reach) if rng.random() >= drafting[1]), reach)
                counts[0, :reach] += 1
                counts[1, : min(reach, kept + 1)] += 1
                counts[2, :kept] += 1
                accepted.append(kept)
                drafted += reach
            draft_s, verify_s = 1e-4 * drafting[0] * n, plain_s + 5e-5 * drafted
            left = [tokens - 1 - kept for tokens, kept in zip(left, accepted, strict=True)]
            num_verifications = n if drafted else 0
            found = {"num_draft_tokens": drafted, "num_accepted_tokens": sum(accepted)}
            found |= {"num_verifications": num_verifications, "draft_s": draft_s, "verify_s": verify_s}
            step(draft_s + verify_s, num_prefill_tokens=0, num_decode_tokens=n, **found)
        left = [tokens for tokens in left if tokens]
    run = {"duration_s": now_s, "output_throughput_tps": num_requests * num_output / now_s}
    if drafting:
        sums = {name: sum(one[name] or 0 for one in steps) for name in list(nothing)[:3]}
        lists = dict(zip(("proposed", "evaluated", "accepted"), counts.tolist(), strict=True))
        run |= sums | {f"{name}_by_position": values for name, values in lists.items()}
        shares = {f"{part}_s": sum(one[f"{part}_s"] or 0 for one in steps) for part in ("draft", "verify")}
        run |= {f"{name[:-2]}_time_fraction": value / now_s for name, value in shares.items()}
    return run, steps


# Name, drafter, k, acceptance.
DRAFTERS = (
    ("ngram_k4", "minivllm.speculation.ngram.Ngram", 4, 0.8),
    ("draft_model_k2", "minivllm.speculation.draft_model.DraftModel", 2, 0.5),
    ("random_k4", "minivllm.speculation.early_exit.EarlyExit", 4, 0.0),
)


def _write(
    folder: Path,
    *,
    drafters: Sequence[tuple[str, str, int, float]] = DRAFTERS,
    sizes: Sequence[int] = (1, 4),
    workloads: Sequence[str] = ("code", "prose"),
    repeats: int = 3,
    off: bool = True,
    changed: Mapping[str, Mapping[str, Any]] | None = None,
    outputs: Mapping[str, str] | None = None,
    **simulated: Any,
) -> Path:
    """A sweep of variants over workloads and batch sizes.

    Args:
        off: whether there are points without drafts.
        changed: more columns of `runs`, by variant.
        outputs: hash of the outputs of a variant, where it is not that of all.
        simulated: for `_simulate`.
    """
    variants = [("baseline", None, 4, 0.0)] * off + list(drafters)
    tables: dict[str, list[dict[str, Any]]] = {"runs": [], "steps": [], "requests": []}
    for repeat in range(repeats):
        places = itertools.product(variants, workloads, sizes)
        for place, ((name, target, k, acceptance), workload, size) in enumerate(places):
            run_id = f"{place:012x}-r{repeat}"
            rng = np.random.default_rng([place, repeat])
            drafting = (k, acceptance) if target else None
            run, steps = _simulate(rng, clients=size, drafting=drafting, **simulated)
            config = {"variant": name, "workload": workload, "workload.concurrency": size, "repeat": repeat}
            config |= {"speculation": target.split(".")[-2] if target else "off", "speculation._target_": target}
            config |= {"speculation.num_draft_tokens": k, "draft_length._target_": "a.fixed.Fixed"}
            tables["runs"].append(
                {
                    **{"schema_version": 5, "sweep": folder.name, "run_id": run_id, "point_id": run_id[:12]},
                    **{"repeat": repeat, "order_index": len(tables["runs"]), "status": "ok", "text_valid": True},
                    "workload_sha256": f"{workload} {repeat}",
                    **{f"cfg.{key}": value for key, value in config.items()},
                    "cfg.sampling.temperature": 0.0,
                    **run,
                    **(changed or {}).get(name, {}),
                }
            )
            tables["steps"] += [{"run_id": run_id, **step} for step in steps]
            sha = (outputs or {}).get(name, "same")
            tables["requests"] += [
                {"run_id": run_id, "request_id": i, "warmup": False, "output_sha256": sha} for i in range(2)
            ]
    for table, rows in tables.items():
        (folder / table).mkdir(parents=True)
        # Rows of one table have not all of its columns.
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        pq.write_table(pa.Table.from_pydict(columns), folder / table / "all.parquet")
    return folder


def _load(folder: Path, **options: Any) -> analysis.Sweep:
    return analysis.load(_write(folder / "speculation", **options))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> analysis.Sweep:
    return _load(tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="module")
def frame(swept: analysis.Sweep) -> pd.DataFrame:
    return analysis.speculation(swept)


def test_a_row_a_point_that_drafts_against_the_point_without_in_the_same_setting(frame: pd.DataFrame) -> None:
    assert len(frame) == 3 * 2 * 2
    assert frame["label"].tolist()[::4] == ["ngram_k4", "draft_model_k2", "random_k4"]
    first = frame.iloc[1]
    assert (first["setting"], first["rest"], first["batch"]) == ("workload=code, concurrency=4", "workload=code", 4)
    assert first["baseline"] == "baseline, workload=code, concurrency=4"
    assert (first["drafter"], first["k"], first["draft_length"]) == ("ngram", 4, "fixed")
    assert frame["num_pairs"].eq(3).all() and frame["same_output_fraction"].eq(1).all()
    assert frame["speedup"].between(frame["speedup_low"], frame["speedup_high"]).all()


def test_speed_ups_are_ratios_of_the_same_repeat(swept: analysis.Sweep, frame: pd.DataFrame) -> None:
    runs = swept.runs.set_index(["cfg.variant", "cfg.workload", "cfg.workload.concurrency", "repeat"])
    tps = runs["output_throughput_tps"]
    ratios = [tps["ngram_k4", "prose", 4, r] / tps["baseline", "prose", 4, r] for r in range(3)]
    row = frame[(frame["label"] == "ngram_k4") & (frame["setting"] == "workload=prose, concurrency=4")].iloc[0]
    assert row["speedup"] == pytest.approx(np.exp(np.mean(np.log(ratios))))


def test_acceptance_is_pooled_over_repeats_and_true_to_what_was_planted(frame: pd.DataFrame) -> None:
    row = frame.iloc[0]
    assert row["accepted_1"] / row["evaluated_1"] == row["acceptance_1"] == pytest.approx(0.8, abs=0.04)
    assert row["acceptance_length"] == 1 + row["num_accepted_tokens"] / row["num_verifications"]
    assert row["acceptance_probability"] == pytest.approx(0.8, abs=0.03)
    assert row["k"] == 4 and row["acceptance_rate"] < row["acceptance_probability"]
    # What nobody proposed has no figure, nor has what the verdict hardly ever fell on.
    small = frame[frame["label"] == "draft_model_k2"].iloc[0]
    assert small["proposed_3"] == 0 and np.isnan(small["acceptance_3"])
    nothing = frame[frame["label"] == "random_k4"].iloc[0]
    assert (nothing["acceptance_1"], nothing["acceptance_length"]) == (0, 1)
    assert nothing["proposed_2"] > 0 and nothing["evaluated_2"] == 0 and np.isnan(nothing["acceptance_2"])


def test_where_costs_are_all_there_is_the_other_repeats_predict_each(frame: pd.DataFrame) -> None:
    assert frame["is_predicted_well"].all() and frame["prediction_error"].abs().max() < 0.04
    assert frame["prediction_error"].between(frame["prediction_error_low"], frame["prediction_error_high"]).all()
    # A repeat's own figures would leave nothing to err.
    assert (frame["prediction_error_high"] - frame["prediction_error_low"] > 1e-4)[frame["label"] != "random_k4"].all()
    # Where nothing is accepted all requests go on together.
    alone = frame["label"] == "random_k4"
    assert frame.loc[alone, "sharing_factor"].to_numpy() == pytest.approx(np.ones(4), abs=1e-9)
    assert (frame.loc[~alone & (frame["batch"] == 4), "sharing_factor"] < 0.99).all()


def test_a_repeat_is_predicted_by_the_others_alone(tmp_path: Path) -> None:
    sweep = _load(tmp_path, drafters=DRAFTERS[:1], sizes=(4,), workloads=("code",), repeats=2)
    tps = sweep.runs.pivot(index="repeat", columns="cfg.variant", values="output_throughput_tps")
    ratio = tps["ngram_k4"] / tps["baseline"]
    (row,) = analysis.speculation(sweep).to_dict("records")
    # What a repeat predicts without any other is its own ratio.
    errors = [row["prediction_error_low"], row["prediction_error_high"]]
    assert errors == pytest.approx(sorted([ratio[1] / ratio[0] - 1, ratio[0] / ratio[1] - 1]))
    assert errors[1] > 1e-4


def test_break_even_is_where_the_same_costs_give_nothing(tmp_path: Path, frame: pd.DataFrame) -> None:
    row = frame.iloc[0]
    needed = row["break_even_probability"]
    # One request at a time: 1.2 ms a plain step, 0.4 ms to draft four and 0.2 to verify them.
    assert row["break_even_length"] == pytest.approx(1 + 0.6 / 1.2, abs=0.02)
    assert row["plain_step_s"] == pytest.approx(1.2e-3) and row["draft_s"] == pytest.approx(4e-4, rel=0.01)
    even = analysis.speculation(
        _load(tmp_path, drafters=[("even", "a.ngram.Ngram", 4, needed)], sizes=(1,), workloads=("code",), repeats=6)
    )
    assert even["speedup"].iloc[0] == pytest.approx(1, abs=0.03)
    assert even["break_even_length"].iloc[0] == pytest.approx(row["break_even_length"], abs=0.03)


def test_what_costs_do_not_explain_is_marked(tmp_path: Path) -> None:
    sweep = _load(tmp_path, drafters=DRAFTERS[:1], sizes=(1,), workloads=("code",), slow_prefill=3.0)
    frame = analysis.speculation(sweep)
    assert frame["is_predicted_well"].tolist() == [False] and frame["prediction_error"].iloc[0] > 0.2
    (said,) = frame.attrs["caveats"]
    assert said.startswith("Measured costs do not explain the speed-up of 1 of 1 rows to within 10 %: ngram_k4")
    (table,) = tables_of(frame)
    predicted = next(column for column in table.columns if column.title == "predicted")
    assert predicted.cells[0].text.endswith(OFF)


def test_one_repeat_predicts_itself_and_the_caveats_say_so(tmp_path: Path) -> None:
    frame = analysis.speculation(_load(tmp_path, repeats=1, sizes=(1,), workloads=("code",)))
    assert frame["prediction_error"].abs().max() < 1e-9
    assert [line for line in frame.attrs["caveats"] if "which predicts itself" in line]
    assert "in one repeat" in sentences_of(frame)[0]


def test_without_points_without_drafts_there_is_acceptance_and_no_ratio(tmp_path: Path) -> None:
    frame = analysis.speculation(_load(tmp_path, off=False, sizes=(1,), workloads=("code",)))
    assert frame["baseline"].isna().all() and frame["speedup"].isna().all() and frame["predicted_speedup"].isna().all()
    assert frame["acceptance_length"].notna().all()
    assert sentences_of(frame) == []
    assert frame.attrs["caveats"][0].startswith("No point without drafts to compare ngram_k4")
    assert {column.title for column in tables_of(frame)[0].columns} & {"speed-up", "predicted", "step"} == set()


def test_acceptance_that_is_made_up_is_said_and_is_no_answer(tmp_path: Path) -> None:
    sweep = _load(tmp_path, sizes=(1,), workloads=("code",), changed={"ngram_k4": {"text_valid": False}})
    frame = analysis.speculation(sweep)
    assert frame["text_valid"].tolist() == [False, True, True]
    assert frame.attrs["caveats"][0].startswith("Acceptance was made up in ngram_k4")
    (said,) = sentences_of(frame)
    assert "draft_model_k2" in said and "ngram" not in said


def test_greedy_outputs_that_drafts_changed_are_said(tmp_path: Path) -> None:
    options: dict[str, Any] = {"sizes": (1,), "workloads": ("code",), "outputs": {"draft_model_k2": "other"}}
    frame = analysis.speculation(_load(tmp_path / "greedy", **options))
    assert frame["same_output_fraction"].tolist() == [1, 0, 1]
    (said,) = (line for line in frame.attrs["caveats"] if "Greedy outputs" in line)
    assert "draft_model_k2" in said and "0 %" in said and "ngram" not in said
    drawn = {name: {"cfg.sampling.temperature": 0.8} for name, *_ in DRAFTERS}
    sampled = analysis.speculation(_load(tmp_path / "sampled", changed=drawn, **options))
    assert not [line for line in sampled.attrs["caveats"] if "Greedy outputs" in line]


def test_the_answer_names_the_best_of_each_setting_or_that_none_pays(frame: pd.DataFrame, tmp_path: Path) -> None:
    said = sentences_of(frame)
    assert len(said) == 4 and said[0].startswith("At workload=code, concurrency=1, what pays best is **ngram_k4**: **")
    row = frame.iloc[0]
    assert f"{row['acceptance_length']:.2f} tokens a verification where {row['break_even_length']:.2f}" in said[0]
    (none,) = sentences_of(frame[(frame["label"] == "random_k4") & (frame["setting"] == frame["setting"].iloc[0])])
    assert "no drafter pays; the least slow is **random_k4**" in none
    unsure = frame.iloc[:1].assign(speedup=1.1, speedup_low=0.9, speedup_high=1.3)
    assert "no drafter is shown to pay; the fastest is **ngram_k4**" in sentences_of(unsure)[0]


def test_a_sweep_without_variants_is_named_by_its_knobs(tmp_path: Path) -> None:
    plain = {"cfg.variant": None}
    two = [("a", "x.medusa.Medusa", 2, 0.5), ("b", "x.medusa.Medusa", 3, 0.5), ("c", "x.medusa.Medusa", 6, 0.5)]
    trees = [None, "[[0], [1], [0, 0]]", "[2, 2]"]
    changed = {name: {**plain, "cfg.speculation.tree": tree} for (name, *_), tree in zip(two, trees, strict=True)}
    sweep = _load(tmp_path, drafters=two, sizes=(1,), workloads=("code",), changed=changed | {"baseline": plain})
    frame = analysis.speculation(sweep)
    assert frame["drafter"].tolist() == ["medusa chain", "medusa tree of 3", "medusa tree 2x2"]
    assert frame["label"].tolist()[0].startswith("speculation=medusa, ") and frame["label"].is_unique
    assert frame["setting"].tolist() == [""] * 3 and frame["baseline"].notna().all()


def test_every_report_has_the_tables_the_answer_and_the_plots(tmp_path: Path) -> None:
    swept = _load(tmp_path, drafters=DRAFTERS[:1], repeats=2)
    points, found = analysis.points(swept), answer(swept)
    assert found.speculation is not None
    plots = write_plots(swept, points, tmp_path / "plots")
    assert plots["speculation"].stat().st_size > 20_000
    text = markdown(swept, points, {"speculation": "plots/speculation.png"}, found)
    assert f"## {SPECULATION}" in text and "### workload=prose, concurrency=4" in text
    assert text.count(" is **ngram_k4**: **") == 4 and "plots/speculation.png" in text
    html = page(swept, points, found)
    assert f"<h2>{SPECULATION}</h2>" in html and html.count("<h3>workload=") == 4
    for name in ("acceptance", "speedup", "predicted"):
        assert f'data-name="speculation-{name}"' in html
    drawn = {path.stem for path in write_figures(swept, points, found, tmp_path / "figures")}
    assert {"speculation-acceptance", "speculation-speedup", "speculation-predicted"} <= drawn
    for width, encoding in ((200, "utf-8"), (60, "ascii")):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict" if encoding == "utf-8" else "replace")
        print_speculation(found.speculation, Console(file=out, width=width, highlight=False))
        out.seek(0)
        shown = out.read()
        assert "Speculation: workload=code, concurrency=1" in shown and "speed-up" in shown
    assert not any("same workload" in line for line in caveats(swept, points)), "what was swept is no defect"


def test_plots_hold_what_the_table_holds(frame: pd.DataFrame) -> None:
    specs = speculation_specs(frame)
    json.dumps(specs, allow_nan=False)
    accepted = specs["speculation-acceptance"]["panels"][0]
    assert accepted["title"] == "workload=code"
    ngram = accepted["series"][0]
    both = frame[(frame["drafter"] == "ngram") & (frame["rest"] == "workload=code")]
    assert ngram["y"][0] == pytest.approx(100 * both["accepted_1"].sum() / both["evaluated_1"].sum())
    speeds = specs["speculation-speedup"]["panels"][0]
    measured, predicted = speeds["series"][:2]
    assert measured["y"] == pytest.approx(both["speedup"].tolist()) and not measured["line"]
    assert predicted["y"] == pytest.approx(both["predicted_speedup"].tolist()) and predicted["dots"]
    assert len(specs["speculation-predicted"]["panels"][0]["lines"]) == 3


def test_without_drafters_there_is_no_section(ablation: analysis.Sweep) -> None:
    found, points = answer(ablation), analysis.points(ablation)
    assert found.speculation is None and found.caveats == ()
    assert analysis.speculation(ablation).empty
    assert f"## {SPECULATION}" not in markdown(ablation, points, {}, found)
    assert 'id="speculation"' not in page(ablation, points, found)
