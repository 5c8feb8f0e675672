"""Which runner serves a config."""

from __future__ import annotations

from minivllm.config import EngineConfig
from minivllm.runner.base import Runner
from minivllm.runner.parts import find_kernels, make_parts


def make_runner(config: EngineConfig) -> Runner:
    """The runner of this engine, with its model loaded.

    Raises:
        ValueError: a device or kernels that this machine does not have, a model that cannot be loaded or does not fit.
    """
    kernels = find_kernels(config)
    parts = make_parts(config, kernels)
    if kernels == "triton":
        from minivllm.runner.device_runner import DeviceRunner

        return DeviceRunner(config, parts)
    from minivllm.runner.model_runner import ModelRunner

    return ModelRunner(config, parts)
