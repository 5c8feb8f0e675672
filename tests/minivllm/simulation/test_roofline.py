"""The roofline of a simulation counts what `experiments.roofline` counts of a real run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulating import GPU, SHAPE, simulated_engine, sizes_of

from experiments.roofline import Roofline as Counted
from minivllm.config import EngineConfig, ExecutionConfig, ModelConfig
from minivllm.models.spec import ModelSpec
from minivllm.plan import Chunk, StepPlan
from minivllm.simulation.base import StepTimeTarget, StepWork
from minivllm.simulation.config import SimulationConfig
from minivllm.simulation.hardware import HardwareConfig
from minivllm.simulation.roofline import Roofline
from minivllm.simulation.work import step_work

_IDEAL = dataclasses.replace(
    GPU,
    linear_bandwidth_fraction=1.0,
    linear_flops_fraction=1.0,
    attention_bandwidth_fraction=1.0,
    attention_flops_fraction=1.0,
    layer_overhead_s=0.0,
    step_overhead_s=0.0,
    host_step_s=0.0,
    host_request_s=0.0,
)
_BEYOND = 1e30


def _model(hardware: HardwareConfig, spec: ModelSpec, overlap: bool | None = None) -> Roofline:
    config = EngineConfig(
        model=ModelConfig(weights="random", shape=SHAPE),
        execution=ExecutionConfig(device="simulated", overlap=overlap),
        simulation=SimulationConfig(hardware=hardware),
    )
    return Roofline(target=StepTimeTarget(config=config, spec=spec, sizes=sizes_of(spec), hardware=hardware))


@st.composite
def _plans(draw: st.DrawFn, longest: int = 50) -> StepPlan:
    chunks = []
    for request_id in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, longest))
        num_tokens = draw(st.sampled_from([1, 1, draw(st.integers(1, 12))]))
        chunks.append(Chunk(request_id=request_id, start=start, num_tokens=num_tokens, samples=draw(st.booleans())))
    return StepPlan(step=0, released=(), new_rows=(), table_updates=(), copies=(), others=tuple(chunks))


def _counted(spec: ModelSpec) -> Counted:
    sizes = sizes_of(spec)
    return Counted(
        spec,
        layers_bytes=sizes.layers_bytes,
        head_bytes=sizes.head_bytes,
        row_bytes=sizes.row_bytes,
        kv_token_bytes=sizes.kv_token_bytes,
    )


@given(_plans())
@settings(max_examples=50, deadline=None)
def test_bytes_and_flops_are_those_that_a_real_run_is_held_against(plan: StepPlan) -> None:
    spec = ModelSpec.from_hf(SHAPE, "test")
    work, counted = step_work(plan), _counted(spec).count(plan.chunks)
    only_bytes = dataclasses.replace(_IDEAL, flops_per_s={"float32": _BEYOND}, bandwidth_bytes_per_s=1e9)
    assert _model(only_bytes, spec).step_s(work) * 1e9 == pytest.approx(counted.num_bytes, rel=1e-9)
    only_flops = dataclasses.replace(_IDEAL, flops_per_s={"float32": 1e9}, bandwidth_bytes_per_s=_BEYOND)
    assert _model(only_flops, spec).step_s(work) * 1e9 == pytest.approx(counted.num_flops, rel=1e-9)


@given(_plans(longest=9), st.sampled_from([60, 1]))
@settings(max_examples=50, deadline=None)
def test_a_window_is_exact_where_all_contexts_lie_on_one_side_of_it(plan: StepPlan, window: int) -> None:
    shape = {**SHAPE, "architectures": None, "model_type": "mistral", "sliding_window": window}
    spec = ModelSpec.from_hf(shape, "test")
    only_flops = dataclasses.replace(_IDEAL, flops_per_s={"float32": 1e9}, bandwidth_bytes_per_s=_BEYOND)
    expected = _counted(spec).count(plan.chunks).num_flops
    assert _model(only_flops, spec).step_s(step_work(plan)) * 1e9 == pytest.approx(expected, rel=1e-9)


def test_an_8b_model_on_an_h200_lies_on_the_floor_where_kernels_are_ideal() -> None:
    """The floors are those of whole steps, at the 4.3 TB/s that a copy reaches; at 256 rows the layers, by themselves,
    wait for arithmetic."""
    practical = dataclasses.replace(_IDEAL, bandwidth_bytes_per_s=4.3e12)
    llm = simulated_engine(
        shape=_qwen3_8b(), hardware=practical, step_time="roofline", max_model_len=4096, num_blocks=100
    )
    for batch, floor_s in ((1, 3.56e-3), (32, 4.64e-3), (256, 12.5e-3)):
        work = StepWork(num_decode_tokens=batch, num_sampled_tokens=batch, num_decode_context_tokens=batch * 1024)
        assert 0.98 * floor_s < llm.runner.step_time.step_s(work) < 1.04 * floor_s


def _qwen3_8b() -> dict[str, Any]:
    import yaml

    from experiments.compose import CONF

    loaded: dict[str, Any] = yaml.safe_load((CONF / "model" / "random_qwen3_8b.yaml").read_text())["shape"]
    return loaded


def test_the_host_hides_behind_the_device_only_where_steps_overlap() -> None:
    spec = ModelSpec.from_hf(SHAPE, "test")
    work = StepWork(num_decode_tokens=3, num_decode_context_tokens=30, num_sampled_tokens=3)
    for host_s in (1e-7, 10.0):
        slow = dataclasses.replace(_IDEAL, host_step_s=host_s, host_request_s=host_s)
        device_s = _model(slow, spec).device_s(work)
        assert _model(slow, spec, overlap=True).step_s(work) == pytest.approx(max(4 * host_s, device_s))
        assert _model(slow, spec, overlap=False).step_s(work) == pytest.approx(4 * host_s + device_s)


def test_swapped_blocks_cross_the_link_to_the_host() -> None:
    spec = ModelSpec.from_hf(SHAPE, "test")
    linked = dataclasses.replace(_IDEAL, host_link_bytes_per_s=1e6)
    model = _model(linked, spec)
    block_bytes = 16 * sizes_of(spec).kv_token_bytes
    assert model.device_s(StepWork(num_swapped_blocks=5)) == pytest.approx(5 * block_bytes / 1e6)


def test_a_precision_that_the_hardware_does_not_multiply_is_one_line() -> None:
    spec = ModelSpec.from_hf(SHAPE, "test")
    with pytest.raises(ValueError, match=r"hardware='H200 SXM': has no hardware.flops_per_s.float32; there are int8"):
        _model(dataclasses.replace(_IDEAL, flops_per_s={"int8": 1.0, "float32": None}), spec)
