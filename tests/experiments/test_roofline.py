"""Bytes and FLOPs of a step against counting by hand, and the peaks that they are held against."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from torch.utils.flop_counter import FlopCounterMode

from experiments import peaks
from experiments.observe import ResidentMemory, SeenRunner
from experiments.peaks import Place
from experiments.plan import plan_sweep
from experiments.points import freeze
from experiments.roofline import Roofline, attended, fractions
from minivllm.llm import LLM
from minivllm.plan import Chunk
from minivllm.runner.model_runner import ModelRunner
from minivllm.sampling_params import SamplingParams

Cli = Callable[..., int]


@pytest.fixture(scope="module")
def llm(tiny: tuple[str, ...]) -> LLM:
    # Weights as they are: our own kernels keep theirs in panels, filled up with zeros.
    (job,) = plan_sweep([*tiny, "execution.kernels=torch"]).jobs
    return LLM.from_config(freeze(job.config).engine)


def _make_roofline(llm: LLM) -> Roofline:
    roofline = Roofline.of(llm.engine.runner, llm.engine.memory(), llm.engine.block_size)
    assert roofline is not None
    return roofline


def _chunk(start: int, num_tokens: int, *, samples: bool = True) -> Chunk:
    return Chunk(request_id=0, start=start, num_tokens=num_tokens, samples=samples)


@pytest.mark.parametrize("window", [None, 1, 3, 7, 50])
@pytest.mark.parametrize(("start", "num_tokens"), [(0, 1), (0, 9), (5, 1), (6, 4), (2, 30), (48, 5)])
def test_keys_that_tokens_see_are_counted_like_one_by_one(start: int, num_tokens: int, window: int | None) -> None:
    seen = [set(range(max(0, p + 1 - (window or p + 1)), p + 1)) for p in range(start, start + num_tokens)]
    assert attended(start, num_tokens, window) == (len(set().union(*seen)), sum(map(len, seen)))


def test_a_step_is_what_the_formula_says(llm: LLM) -> None:
    # One layer of hidden size 16: 2 heads and 1 key/value head of size 8, feed-forward 32, 64 words, fp32; tied.
    work = _make_roofline(llm).count([_chunk(0, 5, samples=False), _chunk(10, 1)])
    weights = 16 * (2 + 2) * 8 + 2 * 8 * 16 + 3 * 16 * 32
    norms = 16 + 16 + 16 + (2 + 1) * 8
    assert work.num_flops == 2 * 6 * weights + 2 * 16 * 64 + 4 * 2 * 8 * (15 + 11)
    # K/V of 5 and 11 positions read and of 6 written, 2 x 8 numbers each.
    assert work.num_bytes == 4 * (weights + norms + 16 * 64 + 6 * 16 + (5 + 11 + 6) * 16)


def test_a_step_that_samples_nothing_leaves_the_head_alone(llm: LLM) -> None:
    roofline = _make_roofline(llm)
    with_head, without = roofline.count([_chunk(0, 4)]), roofline.count([_chunk(0, 4, samples=False)])
    assert with_head.num_flops - without.num_flops == 2 * 16 * 64
    assert with_head.num_bytes - without.num_bytes == 4 * 16 * 64
    assert roofline.count([]).num_flops == roofline.count([]).num_bytes == 0


def test_verified_drafts_are_tokens_like_any_other(llm: LLM) -> None:
    roofline = _make_roofline(llm)
    drafting = Chunk(request_id=0, start=9, num_tokens=1, samples=True, num_draft_tokens=5)
    # Three were found: as much as a chunk of four tokens, all of which the head reads.
    found, plain = roofline.count([drafting], {0: 3}), roofline.count([_chunk(9, 4)])
    assert found.num_flops - plain.num_flops == 2 * 3 * 16 * 64
    assert found.num_bytes == plain.num_bytes
    assert roofline.count([drafting]) == roofline.count([_chunk(9, 1)])


def test_products_with_weights_are_those_that_torch_counts(llm: LLM) -> None:
    with FlopCounterMode(display=False) as counter:
        llm.generate([{"prompt_token_ids": [1, 2, 3, 4, 5, 6, 7]}], SamplingParams(temperature=0, max_tokens=1))
    counted = _make_roofline(llm).count([_chunk(0, 7)]).num_flops
    products = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op) and "bmm" not in str(op)
    )
    assert products == counted - 4 * 2 * 8 * 28


def test_a_watched_runner_is_the_runner(llm: LLM) -> None:
    runner = llm.engine.runner
    seen = SeenRunner(runner)
    for name in ("num_blocks", "max_model_len", "vocab_size", "eos_token_ids"):
        assert getattr(seen, name) == getattr(runner, name)
    assert seen.memory() == runner.memory()
    assert isinstance(runner, ModelRunner) and Roofline.of(seen, seen.memory(), 4) is None


def test_fractions_need_work_time_and_a_peak() -> None:
    assert fractions(10.0, 20.0, 2.0, 10.0, 100.0) == {"mbu_fraction": 0.5, "mfu_fraction": 0.1}
    assert fractions(None, None, 2.0, 10.0, 100.0) == {"mbu_fraction": None, "mfu_fraction": None}
    assert fractions(10.0, 20.0, 2.0, None, None) == {"mbu_fraction": None, "mfu_fraction": None}


def test_resident_memory_is_that_of_the_process() -> None:
    memory = ResidentMemory()
    before = memory.num_bytes()
    held = bytearray(b"x") * 50_000_000
    after = memory.num_bytes()
    memory.close()
    assert before is not None and after is not None
    assert after - before > len(held) * 0.8


MACHINE = {"env.cpu": "a", "env.cpu_count": 2, "env.gpu": None, "env.torch": "2"}


def test_peaks_are_kept_for_one_machine_and_one_place(tmp_path: Path) -> None:
    place = Place(device="cpu", num_threads=1, dtype="auto")
    file, found = peaks.kept(tmp_path, place, MACHINE)
    assert found is None
    peaks.keep(file, place, {"bandwidth_bytes_per_s": 1.0, "flops_per_s": {"float32": 2.0}})
    found = peaks.kept(tmp_path, place, MACHINE)[1]
    assert found is not None and found["flops_per_s"] == {"float32": 2.0}
    assert peaks.kept(tmp_path, place, MACHINE | {"env.cpu": "b"})[1] is None
    assert peaks.kept(tmp_path, Place(device="cpu", num_threads=2, dtype="auto"), MACHINE)[1] is None
    file.write_text("{half")
    assert peaks.kept(tmp_path, place, MACHINE)[1] is None


def test_a_gpu_may_turn_out_to_use_any_dtype_and_a_cpu_uses_one() -> None:
    assert Place(device="cpu", num_threads=1, dtype="auto").dtypes == ("float32",)
    assert Place(device="cpu", num_threads=1, dtype="bfloat16").dtypes == ("bfloat16",)
    assert set(Place(device="cuda", num_threads=None, dtype="auto").dtypes) == {"float32", "bfloat16", "float16"}


def test_a_sweep_measures_its_machine_once_and_holds_every_run_against_it(cli: Cli, tmp_path: Path) -> None:
    assert cli("sweep", "experiment=null", "seed=0,1", "sweep.measure_peaks=true") == 0
    (file,) = (tmp_path / "run" / "peaks").iterdir()
    kept = json.loads(file.read_text())
    runs, steps = (pd.read_parquet(tmp_path / "run" / table) for table in ("runs", "steps"))
    # Any machine copies more than 100 MB/s, and multiplies more than 10 MFLOP/s however busy it is.
    assert kept["bandwidth_bytes_per_s"] > 1e8 and kept["flops_per_s"]["float32"] > 1e7
    assert set(runs["env.peak_bandwidth_bytes_per_s"]) == {kept["bandwidth_bytes_per_s"]}
    for run in runs.to_dict("records"):
        own = steps[steps["run_id"] == run["run_id"]]
        achieved = own["counted_bytes"].sum() / own["duration_s"].sum()
        assert run["mbu_fraction"] == pytest.approx(achieved / kept["bandwidth_bytes_per_s"])
        assert run["mfu_fraction"] > 0 and run["counted_flops"] == own["counted_flops"].sum()
        assert 0 < run["host_fraction"] < 1
    assert steps["process_bytes"].notna().any() and (steps["process_bytes"].dropna() > 1e7).all()
    # Taken up again, it measures nothing.
    stamp = file.stat().st_mtime_ns
    assert cli("sweep", "experiment=null", "seed=0,1,2", "sweep.measure_peaks=true") == 0
    assert file.stat().st_mtime_ns == stamp
