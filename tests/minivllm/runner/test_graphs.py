"""What surrounds CUDA graphs: warm-up, capture, replay, events. Where there is no GPU, a stand-in for `torch.cuda` runs
again what was captured, so that all of it is executed but the graph itself."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import Oracle, save_tiny_llama

from minivllm import LLM, SamplingParams
from minivllm.config import SpeculationConfig
from minivllm.runner.decode import DecodeStep
from minivllm.runner.device_runner import DeviceRunner
from minivllm.runner.verify_step import VerifyStep

PROMPTS = [[3, 4, 5, 6, 7], [8, 9]]


class _Recorder:
    """Remembers what is computed while a graph is captured."""

    def __init__(self) -> None:
        self.capturing: list[Any] | None = None
        self.replayed: list[type] = []
        recorder = self

        class Graph:
            def capture_begin(self, pool: Any) -> None:
                assert pool == "pool" and recorder.capturing is None
                recorder.capturing = self.captured = []

            def capture_end(self) -> None:
                recorder.capturing = None

            def replay(self) -> None:
                ((step, given, sampled, logits),) = self.captured
                recorder.replayed.append(type(step))
                again = _COMPUTE[type(step)](step, *given)
                sampled.copy_(again[0])
                logits.copy_(again[1])

        self.Graph = Graph

    def compute(self, step: Any, *given: Any) -> Any:
        sampled, logits = _COMPUTE[type(step)](step, *given)
        if self.capturing is not None:
            self.capturing.append((step, given, sampled, logits))
        return sampled, logits


_COMPUTE: dict[type, Any] = {DecodeStep: DecodeStep.compute, VerifyStep: VerifyStep.compute}


class _Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, ended: _Event) -> float:
        return 2.0


def _stand_in_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> _Recorder:
    recorder = _Recorder()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for step in _COMPUTE:
        monkeypatch.setattr(step, "compute", lambda step, *given: recorder.compute(step, *given))
    for name, stand_in in {
        "CUDAGraph": recorder.Graph,
        "Event": _Event,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "graph_pool_handle": lambda: "pool",
        "reset_peak_memory_stats": lambda: None,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return recorder


@pytest.mark.parametrize("logprobs", [None, 1])
def test_replayed_steps_give_the_tokens_of_computed_ones(
    logprobs: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_llama(tmp_path, num_hidden_layers=1)
    llm = LLM(str(folder), kernels="triton", num_blocks=8, block_size=8, max_num_seqs=2, max_model_len=24, overlap=True)
    runner = llm.engine.runner
    assert isinstance(runner, DeviceRunner)
    recorder = _stand_in_for_the_gpu(monkeypatch)
    runner._on_gpu = True
    runner._warm_up(llm.config)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=logprobs)
    reports = []
    for prompt in PROMPTS:
        llm.engine.add_request(prompt, params)
    while llm.engine.has_unfinished:
        reports.append(llm.engine.step())
    finished = llm.engine.take_finished()
    assert len(finished) == len(PROMPTS)
    oracle = Oracle(folder)
    for request in finished:
        prompt = tuple(request.token_ids[: request.num_prompt_tokens])
        assert tuple(request.output_token_ids) == oracle.greedy(prompt, 4)[0]
        assert len(request.logprobs) == (0 if logprobs is None else 4)
    assert recorder.replayed == [DecodeStep] * 3
    assert [report.device_s for report in reports] == [None, *[0.002] * (len(reports) - 1)]
    assert sum(report.num_compilations for report in reports) == 0


@pytest.mark.parametrize("step", [DecodeStep, VerifyStep], ids=["beside-each-other", "padded"])
def test_replayed_verifications_give_the_tokens_of_the_other_runner(
    step: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_llama(tmp_path, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    speculation = SpeculationConfig.named("synthetic", num_draft_tokens=2, acceptance=0.7)
    params = [
        SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=1),
        SamplingParams(temperature=0, max_tokens=4, ignore_eos=True),
    ]
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    options = {"num_blocks": 8, "block_size": 8, "max_num_seqs": 2, "max_model_len": 24, "speculation": speculation}
    theirs = LLM(str(folder), kernels="torch", **options).generate(prompts, params)
    llm = LLM(str(folder), kernels="triton", **options)
    runner = llm.engine.runner
    recorder = _stand_in_for_the_gpu(monkeypatch)
    if step is VerifyStep:
        runner._steps._few = 0
    runner._on_gpu = True
    runner._warm_up(llm.config)
    ours = llm.generate(prompts, params)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.outputs[0].token_ids == other.outputs[0].token_ids
    for at, wanted in zip(ours[0].outputs[0].logprobs, theirs[0].outputs[0].logprobs, strict=True):
        assert at == pytest.approx(wanted, abs=1e-4)
    assert step in recorder.replayed
