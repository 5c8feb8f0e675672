"""What stands for a device where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minivllm.component import Component, component_of_ours, require
from minivllm.simulation.hardware import HardwareConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationConfig:
    """Of an engine with `execution.device=simulated`.

    Args:
        hardware: what is simulated.
        step_time: how long its steps take, a `StepTimeModel`.
    """

    hardware: HardwareConfig
    step_time: Component = Component(target="minivllm.simulation.roofline.Roofline")

    @classmethod
    def named(
        cls, *, hardware: str | HardwareConfig = "h200", step_time: str | Component = "roofline", **kwargs: Any
    ) -> SimulationConfig:
        """Of parts of ours.

        Args:
            hardware: itself, or the name of a file in `conf/hardware`.
            step_time: itself, or the name of its module: `constant` is `minivllm.simulation.constant.Constant`.
            kwargs: what the step-time model is made with, where it is named.

        Raises:
            ValueError: no hardware of that name.
        """
        if isinstance(hardware, str):
            hardware = HardwareConfig.named(hardware)
        require(isinstance(hardware, HardwareConfig), "hardware", hardware, "the name of one or a HardwareConfig")
        if isinstance(step_time, str):
            step_time = component_of_ours("minivllm.simulation", step_time, kwargs)
        require(isinstance(step_time, Component), "step_time", step_time, "the name of a model or a Component")
        return cls(hardware=hardware, step_time=step_time)
