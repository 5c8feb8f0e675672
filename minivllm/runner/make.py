"""Which runner serves a config."""

from __future__ import annotations

from minivllm.clock import Clock, VirtualClock
from minivllm.config import EngineConfig
from minivllm.runner.base import Runner


def make_runner(config: EngineConfig, clock: Clock | None = None) -> Runner:
    """The runner of this engine, with its model loaded.

    Args:
        config: the engine's.
        clock: the engine's; a simulation moves it.

    Raises:
        ValueError: a device or kernels that this machine does not have, a model that cannot be loaded or does not fit.
    """
    if config.simulation is not None:
        assert isinstance(clock, VirtualClock), "a simulation needs a clock that it can move"
        from minivllm.simulation.make import make_simulated_runner

        return make_simulated_runner(config, clock)
    # They import torch, and a simulation needs none.
    from minivllm.runner.parts import find_kernels, make_parts

    kernels = find_kernels(config)
    parts = make_parts(config, kernels)
    if kernels == "triton":
        from minivllm.runner.device_runner import DeviceRunner

        return DeviceRunner(config, parts)
    from minivllm.runner.model_runner import ModelRunner

    return ModelRunner(config, parts)
