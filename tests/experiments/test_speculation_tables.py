"""What the tables say of speculation: counts by definition, nulls where it is off, and a real sweep that adds up."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.compose import groups
from experiments.metrics import acceptance
from experiments.observe import SeenRunner
from experiments.plan import plan_sweep
from experiments.points import ASSETS, RunSettings, freeze
from experiments.quality.settings import wants_quality
from experiments.step_stream import StepStream
from experiments.tables import BY_POSITION
from experiments.tracking.wandb import _scalars
from minivllm.plan import Chunk, SampledTokens, StepPlan, StepReport, StepResult
from minivllm.request import Speculated
from minivllm.runner.base import Done
from minivllm.simulation.base import StepWork

Cli = Callable[..., int]
COUNTS = ("num_verifications", "num_draft_tokens", "num_accepted_tokens")


def _freeze(*overrides: str) -> RunSettings:
    (job,) = plan_sweep(overrides).jobs
    assert job.invalid is None, job.invalid
    return freeze(job.config)


def _make_speculated(*verifications: tuple[int, int, int]) -> Speculated:
    made = Speculated()
    for one in verifications:
        made.add(*one)
    return made


def test_acceptance_is_what_its_definition_says() -> None:
    # Of four drafts two were accepted, and the third was looked at; of one, none; of a tree of seven, three deep, all.
    first = _make_speculated((4, 4, 2), (1, 1, 0))
    found = acceptance([first, _make_speculated(), _make_speculated((7, 3, 3))])
    assert [found[name] for name in COUNTS] == [3, 12, 5]
    assert found["acceptance_rate"] == pytest.approx(5 / 12)
    assert found["acceptance_length"] == pytest.approx(1 + 5 / 3)
    assert [found[name] for name in BY_POSITION] == [[3, 2, 2, 1], [3, 2, 2, 0], [2, 2, 1, 0]]


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), max_size=12))
@settings(max_examples=50, deadline=None)
def test_counts_by_position_add_up_to_the_others(drawn: list[tuple[int, int]]) -> None:
    made = [_make_speculated((depth, depth, min(depth, accepted))) for depth, accepted in drawn]
    found = acceptance(made)
    proposed, evaluated, accepted = (found[name] for name in BY_POSITION)
    assert sum(proposed) == found["num_draft_tokens"]
    assert sum(accepted) == found["num_accepted_tokens"]
    assert all(p >= e >= a for p, e, a in zip(proposed, evaluated, accepted, strict=True))
    # The verdict falls on the first draft always, and on another where that before it was accepted.
    assert evaluated[:1] == ([len(drawn)] if drawn else [])
    assert all(e <= a for e, a in zip(evaluated[1:], accepted, strict=False))
    assert (found["acceptance_length"] is None) == (not drawn)


def test_time_shares_are_of_all_steps_and_null_without_speculation() -> None:
    def shares(speculates: bool) -> dict[str, Any]:
        stream = StepStream(None, origin_s=0.0, num_blocks=1, block_size=4, speculates=speculates)
        plain = StepReport(step=0, **_TIMES, **dict.fromkeys(_COUNTED, 0))
        drafting = dataclasses.replace(plain, num_draft_tokens=4, draft_s=0.05, verify_s=0.2)
        for report in (plain, drafting if speculates else plain):
            stream.add(report, StepWork())
        return {name: value for name, value in stream.run_columns().items() if name.endswith("_time_fraction")}

    assert shares(True) == {"draft_time_fraction": pytest.approx(0.05), "verify_time_fraction": pytest.approx(0.2)}
    assert shares(False) == {}


_TIMES = {"start_s": 0.0, "duration_s": 0.5, "schedule_s": 0.1, "run_s": 0.3, "commit_s": 0.1}
_COUNTED = (
    *("num_prefill_tokens", "num_decode_tokens", "num_running", "num_waiting", "kv_blocks_used", "kv_blocks_cached"),
    *("kv_slots_unused", "num_evictions", "num_preemptions", "num_recomputed_tokens"),
)


def test_off_is_no_drafter_and_paths_of_drafters_are_found_wherever_the_package_lies() -> None:
    off = _freeze().engine.speculation
    assert (off.drafter, off.enabled) == (None, False)
    on = _freeze("speculation=draft_model", "speculation.num_draft_tokens=7", "draft_length=adaptive").engine
    assert on.speculation.drafter is not None
    assert on.speculation.drafter.kwargs == {"path": str(ASSETS / "reference-draft")}
    assert on.speculation.num_draft_tokens == 7
    assert on.speculation.length.target == "minivllm.speculation.lengths.adaptive.Adaptive"
    elsewhere = _freeze("speculation=eagle", "speculation.path=/x", "speculation.tree=[[0],[0,0]]").engine.speculation
    assert elsewhere.drafter is not None
    assert elsewhere.drafter.kwargs == {"path": "/x", "tree": [[0], [0, 0]], "draft_vocab_size": None}


@pytest.mark.parametrize("group", ["speculation", "draft_length"])
def test_every_member_names_its_class_and_only_arguments_that_it_takes(group: str) -> None:
    for member in groups()[group]:
        speculation = _freeze(f"{group}={member}").engine.speculation
        part = speculation.drafter if group == "speculation" else speculation.length
        if part is None:
            assert member == "off"
            continue
        module, _, name = part.target.rpartition(".")
        taken = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert set(part.kwargs) <= set(taken) - {"target"}, member
        required = {key for key, one in taken.items() if one.default is one.empty} - {"target", "num_draft_tokens"}
        assert required <= set(part.kwargs), member


def test_a_drafter_from_outside_is_named_by_its_path() -> None:
    (job,) = plan_sweep(["speculation._target_=my_drafters.Parrot", "+speculation.words=3"]).jobs
    drafter = freeze(job.config).engine.speculation.drafter
    assert drafter is not None
    assert (drafter.target, drafter.kwargs) == ("my_drafters.Parrot", {"words": 3})
    assert job.config["choices"]["speculation"] == "my_drafters.Parrot"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["speculation.num_draft_tokens=0"], "speculation.num_draft_tokens=0"),
        (["speculation=ngram", "speculation.sample_drafts=3"], "speculation.sample_drafts=3"),
        (["speculation=ngram", "execution.overlap=true"], "execution.overlap=True"),
        (["speculation=ngram", "cache=none"], "cache.reuse_kv=False"),
        (["draft_length._target_=null"], "draft_length._target_=None"),
        (["+speculation.max_ngram=2"], "speculation._target_=None"),
    ],
)
def test_an_impossible_setting_is_one_line_with_its_key(overrides: list[str], says: str) -> None:
    (job,) = plan_sweep(overrides).jobs
    assert job.invalid is not None and says in job.invalid and "\n" not in job.invalid


def test_acceptance_that_is_made_up_has_no_quality() -> None:
    assert wants_quality(_freeze("speculation=ngram", "quality.enabled=true"))
    assert not wants_quality(_freeze("speculation=synthetic", "quality.enabled=true"))


def test_what_was_drafted_is_seen_when_the_step_is_over() -> None:
    class Drafting:
        def launch(self, plan: StepPlan) -> Done:
            one = SampledTokens(request_id=3, token_ids=(5, 6), num_draft_tokens=2, draft_depth=2)
            return Done(result=StepResult(samples=(one, SampledTokens(request_id=4, token_ids=(1,)))))

    def plan(num_draft_tokens: int) -> StepPlan:
        ids = (3, 4)
        chunks = tuple(
            Chunk(request_id=i, start=8, num_tokens=1, samples=True, num_draft_tokens=num_draft_tokens) for i in ids
        )
        return StepPlan(step=0, released=(), new_rows=(), table_updates=(), copies=(), others=chunks)

    seen = SeenRunner(Drafting())  # type: ignore[arg-type]
    assert len(seen.launch(plan(4)).wait().samples) == 2
    assert seen.drafted == {3: 2}
    # Nothing to look for, and nothing of the last step left.
    assert isinstance(seen.launch(plan(0)), Done)
    assert seen.drafted == {}


def test_a_mirror_has_shares_by_position_in_place_of_lists() -> None:
    row = {"a": 1, "proposed_by_position": [4, 4, 1], "evaluated_by_position": [4, 2, 0]}
    found = _scalars(row | {"accepted_by_position": [2, 1, 0]})
    assert found == {
        "a": 1,
        "acceptance/position_1": 0.5,
        "acceptance/position_2": 0.5,
        "acceptance/position_3": None,
    }
    assert _scalars({"a": 1} | dict.fromkeys(BY_POSITION)) == {"a": 1}


def test_a_sweep_with_a_drafter_adds_up_and_says_what_it_says_without(cli: Cli, tmp_path: Path) -> None:
    few = ("workload.num_requests=2", "workload.min_output_tokens=40", "workload.max_output_tokens=40")
    assert cli("sweep", "experiment=null", "speculation=off,ngram", *few) == 0
    folder = tmp_path / "run"
    runs = pd.read_parquet(folder / "runs").set_index("cfg.speculation")
    everyone = pd.read_parquet(folder / "requests")
    requests = everyone[~everyone["warmup"]].set_index("run_id")
    steps = pd.read_parquet(folder / "steps").set_index("run_id")
    off, on = runs.loc["off"], runs.loc["ngram"]
    assert requests.loc[off["run_id"], "output_sha256"].tolist() == requests.loc[on["run_id"], "output_sha256"].tolist()
    speculated = (*COUNTS, "acceptance_rate", "acceptance_length", *BY_POSITION)
    for table in (requests, runs.set_index("run_id")):
        assert table.loc[[off["run_id"]], list(speculated)].isna().all(axis=None)
    assert steps.loc[off["run_id"], [*COUNTS, "draft_s", "verify_s"]].isna().all(axis=None)
    assert math.isnan(off["draft_time_fraction"]) and math.isnan(off["verify_time_fraction"])
    assert off["text_valid"] and on["text_valid"]

    own, own_steps = requests.loc[on["run_id"]], steps.loc[on["run_id"]]
    assert on["num_accepted_tokens"] > 0
    for name in COUNTS:
        assert on[name] == own[name].sum() == own_steps[name].sum()
    assert sum(on["proposed_by_position"]) == on["num_draft_tokens"]
    assert sum(on["accepted_by_position"]) == on["num_accepted_tokens"]
    # Every request gets one token from its prefill; a decode gives one of its own, and what was accepted.
    assert own_steps["num_decode_tokens"].sum() + on["num_accepted_tokens"] == on["num_output_tokens"] - 2
    assert on["draft_time_fraction"] == pytest.approx(own_steps["draft_s"].sum() / own_steps["duration_s"].sum())
    assert 0 < on["draft_time_fraction"] + on["verify_time_fraction"] < 1
    report = (folder / "report.md").read_text()
    # Faster or slower: that is for chance to say here.
    assert "## Speculation" in report and " **speculation=ngram**: **" in report
    # Verified drafts are computed like any other token: the same work in fewer steps, and that of rejected ones.
    assert len(own_steps) < len(steps.loc[off["run_id"]])
    more = own_steps["counted_flops"].sum() - steps.loc[off["run_id"], "counted_flops"].sum()
    assert more >= 0 and (more > 0) == (on["num_draft_tokens"] > on["num_accepted_tokens"])
