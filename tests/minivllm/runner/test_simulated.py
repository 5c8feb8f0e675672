"""The simulated runner: requests and times are what the plans and the step-time model say, and nothing is imported."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulating import CPU, GPU, SHAPE, simulated_engine, simulated_llm

from minivllm import LLM, SamplingParams
from minivllm.config import Component, SpeculationConfig
from minivllm.engine import Engine
from minivllm.request import FinishReason, Request
from minivllm.simulation.hardware import HardwareConfig

ROOT = Path(__file__).resolve().parents[3]


def _run(engine: Engine) -> list[Request]:
    done = []
    while engine.has_unfinished:
        engine.step()
        done += engine.take_finished()
    engine.check()
    return sorted(done, key=lambda request: request.request_id)


@given(prompt=st.integers(1, 90), output=st.integers(1, 40), chunk=st.integers(1, 33), overlap=st.booleans())
@settings(max_examples=60, deadline=None)
def test_one_request_takes_the_steps_of_its_chunks_and_tokens(
    prompt: int, output: int, chunk: int, overlap: bool
) -> None:
    engine = simulated_engine(max_num_batched_tokens=chunk, overlap=overlap, step_s=0.5, token_s=0.25)
    engine.add_request([1] * prompt, SamplingParams(max_tokens=output))
    (request,) = _run(engine)
    num_chunks = math.ceil(prompt / chunk)
    assert request.finish_reason is FinishReason.LENGTH
    assert request.num_output_tokens == output
    first_s = 0.5 * num_chunks + 0.25 * prompt
    assert request.token_times_s == pytest.approx([first_s + 0.75 * i for i in range(output)])
    assert request.finish_s == request.token_times_s[-1]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=12), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_device_is_busy_from_first_to_last_step_and_one_at_a_time(
    sizes: list[tuple[int, int]], overlap: bool
) -> None:
    engine = simulated_engine(
        max_num_seqs=5, max_num_batched_tokens=16, num_blocks=24, block_size=4, overlap=overlap, token_s=0.125
    )
    times: list[float] = []
    model = engine.runner.step_time
    engine.runner.step_time = type(
        "Seen", (), {"step_s": lambda _, work: times.append(model.step_s(work)) or times[-1]}
    )()
    for prompt, output in sizes:
        engine.add_request([1] * prompt, SamplingParams(max_tokens=output))
    requests = _run(engine)
    assert [r.num_output_tokens for r in requests] == [output for _, output in sizes]
    # Nobody arrives later, so there is no gap.
    assert max(r.finish_s for r in requests) == pytest.approx(sum(times))
    ends = {round(sum(times[: i + 1]), 9) for i in range(len(times))}
    assert {round(t, 9) for r in requests for t in r.token_times_s} <= ends


def test_nothing_ends_a_request_but_its_length() -> None:
    stops = (0, 1, 3)
    outputs = simulated_llm().generate([{"prompt_token_ids": [5]}] * 2, SamplingParams(max_tokens=9))
    assert {o.outputs[0].token_ids for o in outputs} == {(0,) * 9}
    (one,) = simulated_llm().generate({"prompt_token_ids": [5]}, SamplingParams(max_tokens=9, stop_token_ids=stops))
    assert one.outputs[0].token_ids == (2,) * 9
    assert one.outputs[0].finish_reason == "length"


@given(st.floats(0, 1), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_drafts_are_accepted_as_often_as_the_synthetic_drafter_says(rate: float, num_drafts: int, seed: int) -> None:
    def run() -> list[Request]:
        speculation = SpeculationConfig.named("synthetic", num_draft_tokens=num_drafts, acceptance=rate, seed=seed)
        engine = simulated_engine(speculation=speculation, max_num_batched_tokens=512)
        for i in range(12):
            engine.add_request([i], SamplingParams(max_tokens=60))
        return _run(engine)

    requests, again = run(), run()
    assert [r.token_times_s for r in requests] == [r.token_times_s for r in again]
    assert {r.num_output_tokens for r in requests} == {60}
    evaluated = sum(sum(r.speculated.evaluated) for r in requests)
    accepted = sum(r.speculated.num_accepted_tokens for r in requests)
    assert abs(accepted - rate * evaluated) <= 5 * math.sqrt(evaluated * rate * (1 - rate)) + 1e-9


def test_a_gpus_pool_is_what_weights_and_the_largest_step_leave() -> None:
    shape = SHAPE | {"num_key_value_heads": 6, "head_dim": 256}
    llm = simulated_llm(
        hardware=GPU, shape=shape, num_blocks=None, max_num_seqs=1 << 14, max_num_batched_tokens=1 << 14
    )
    memory = llm.engine.memory()
    budget = 0.9 * GPU.memory_bytes
    assert memory.weights_bytes + memory.kv_cache_bytes < budget
    assert memory.kv_cache_bytes > 0.9 * budget
    small = HardwareConfig.named("h200")
    with pytest.raises(ValueError, match=r"gpu_memory_fraction=1e-07, which leaves 0 bytes for K/V: must hold one"):
        simulated_llm(hardware=small, num_blocks=None, gpu_memory_fraction=1e-7)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "drafts from tokens": ({"speculation": "ngram"}, "has no tokens to draft from: choose speculation=synthetic"),
    "no such hardware": ({"hardware": "h20"}, "hardware='h20': must be one of a100, cpu, h100, h200, l4"),
    "no such model of steps": ({"step_time": "rofline"}, "cannot be imported"),
    "no model of steps": (
        {"step_time": Component(target="pathlib.Path")},
        "step_time._target_='pathlib.Path': must be a StepTime",
    ),
    "negative time": (
        {"step_time": Component(target="minivllm.simulation.constant.Constant", kwargs={"step_s": -1})},
        "step_time.step_s=-1: must be 0 or more",
    ),
    "no device": ({"device": "tpu"}, "execution.device='tpu': must be one of cpu, cuda, simulated"),
    "no memory": ({"num_blocks": None, "memory_bytes": 1}, "must hold one block"),
    "hardware of a real device": ({"device": "cpu", "hardware": "h200"}, r"hardware='h200'\): no such option"),
}


@pytest.mark.parametrize(("options", "says"), REFUSED.values(), ids=list(REFUSED))
def test_a_mistake_is_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        LLM(**{"weights": "random", "shape": SHAPE, "device": "simulated", **options})
    assert "\n" not in str(caught.value)


def test_every_hardware_of_ours_is_whole() -> None:
    for file in sorted((ROOT / "conf" / "hardware").glob("*.yaml")):
        hardware = HardwareConfig.named(file.stem)
        for dtype in ("float32", "bfloat16", "float16"):
            assert hardware.peak_flops_per_s(dtype) > 1e9
        assert simulated_llm(hardware=hardware, step_time="roofline").engine.num_blocks


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"memory_bytes": 0}, "hardware.memory_bytes=0: must be above 0"),
        ({"bandwidth_bytes_per_s": float("nan")}, "hardware.bandwidth_bytes_per_s=nan: must be above 0"),
        ({"linear_flops_fraction": 1.2}, r"hardware.linear_flops_fraction=1.2: must be in \(0, 1\]"),
        ({"host_step_s": -1}, "hardware.host_step_s=-1: must be 0 or more"),
        ({"flops_per_s": {"float32": "fast"}}, "hardware.flops_per_s.float32='fast': must be above 0"),
        ({"device": "tpu"}, "hardware.device='tpu': must be one of cpu, cuda"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_hardware_that_cannot_be_is_one_line(change: dict[str, Any], says: str) -> None:
    import dataclasses

    with pytest.raises(ValueError, match=says):
        dataclasses.replace(CPU, **change)


def test_a_simulation_of_text_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import json, sys\n"
        "from minivllm import LLM, SamplingParams\n"
        "llm = LLM('experiments/assets/reference-target', device='simulated', hardware='h200', max_num_seqs=8)\n"
        "out = llm.generate(['def f(x):', 'import os'], SamplingParams(max_tokens=7, stop=['never said']))\n"
        "print(json.dumps([[len(o.prompt_token_ids), len(o.outputs[0].token_ids)] for o in out]))\n"
        "print(*sorted({'torch', 'transformers', 'numba', 'scipy', 'pandas'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    counts, loaded = done.stdout.splitlines()
    assert [output for _, output in json.loads(counts)] == [7, 7]
    assert loaded == ""


def test_the_host_tokenizer_is_the_models_own() -> None:
    from minivllm.models.tokenizer import load_tokenizer

    path = str(ROOT / "experiments" / "assets" / "reference-target")
    real, ours = load_tokenizer(path), load_tokenizer(path, host_only=True)
    texts = ("", "def f(x):\n    return x", "é\u2603 \t\n  <|eos|>x")
    for text in texts:
        for special in (True, False):
            ids = real.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == real.decode(ids, skip_special_tokens=skip)
    assert ours.bos_token_id == real.bos_token_id


def test_no_tokenizer_is_one_line_with_a_choice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer.json, which a simulation reads: choose workload.prompts=random"):
        simulated_llm(tokenizer=str(tmp_path)).generate("text")


def test_times_of_a_run_never_go_back() -> None:
    engine = simulated_engine(max_num_batched_tokens=8)
    for i in range(5):
        engine.add_request([i] * 20, SamplingParams(max_tokens=5))
    starts = []
    while engine.has_unfinished:
        starts.append(engine.step().start_s)
    assert all(before < after for before, after in pairwise(starts))
