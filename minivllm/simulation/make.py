"""From a config to a simulated runner."""

from __future__ import annotations

from minivllm.clock import VirtualClock
from minivllm.config import EngineConfig, require
from minivllm.models.folder import read_spec
from minivllm.runner.simulated import SimulatedRunner
from minivllm.simulation.base import StepTimeTarget
from minivllm.simulation.sizes import ModelSizes


def make_simulated_runner(config: EngineConfig, clock: VirtualClock) -> SimulatedRunner:
    """The runner of a config with `execution.device=simulated`; of the model only its shape is read.

    Raises:
        ValueError: a shape, a precision or a step-time model that cannot be simulated.
    """
    simulation = config.simulation
    assert simulation is not None
    spec = read_spec(config.model)
    dtype = config.execution.dtype
    if dtype == "auto":
        dtype = "float32" if simulation.hardware.device == "cpu" else spec.dtype
    sizes = ModelSizes.of(spec, dtype, config.quantization)
    target = StepTimeTarget(config=config, spec=spec, sizes=sizes, hardware=simulation.hardware)
    step_time = simulation.step_time.make("step_time", target=target)
    valid = callable(getattr(step_time, "step_s", None))
    require(valid, "step_time._target_", simulation.step_time.target, "a StepTimeModel, with a method step_s")
    return SimulatedRunner(config, spec, sizes, step_time, clock)
