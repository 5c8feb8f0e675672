"""What a simulated machine is, as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minivllm.component import require

DEVICES = ("cpu", "cuda")
# Shipped beside the packages, as all of `conf/` is.
_CONF = Path(__file__).resolve().parent.parent.parent / "conf" / "hardware"
_POSITIVE = ("memory_bytes", "bandwidth_bytes_per_s", "host_link_bytes_per_s")
_FRACTIONS = (
    "linear_bandwidth_fraction",
    "linear_flops_fraction",
    "attention_bandwidth_fraction",
    "attention_flops_fraction",
)
_SECONDS = ("layer_overhead_s", "step_overhead_s", "host_step_s", "host_request_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class HardwareConfig:
    """One device and the host before it.

    Args:
        name: of the product.
        device: what it stands for, `cuda` or `cpu`: it decides the K/V pool, `dtype=auto` and whether steps overlap,
            as on a real one.
        memory_bytes: of the device.
        bandwidth_bytes_per_s: of that memory.
        flops_per_s: peak by dtype, dense: float32, bfloat16, float16, and int8 or fp8 where there are such products.
        host_link_bytes_per_s: between the device's memory and the host's, one way.
        linear_bandwidth_fraction, linear_flops_fraction: of the two peaks, what products with weights reach.
        attention_bandwidth_fraction, attention_flops_fraction: what attention reaches.
        layer_overhead_s: of each layer, what is neither bytes nor FLOPs: launches and gaps between kernels.
        step_overhead_s: the same of a step: embedding, norm, sampling, copies of ids.
        host_step_s, host_request_s: the host's own work for a step, and for each request in it.
    """

    name: str
    device: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    host_link_bytes_per_s: float
    linear_bandwidth_fraction: float
    linear_flops_fraction: float
    attention_bandwidth_fraction: float
    attention_flops_fraction: float
    layer_overhead_s: float = 0.0
    step_overhead_s: float = 0.0
    host_step_s: float = 0.0
    host_request_s: float = 0.0

    def __post_init__(self) -> None:
        require(isinstance(self.name, str) and bool(self.name), "hardware.name", self.name, "a name")
        require(self.device in DEVICES, "hardware.device", self.device, f"one of {', '.join(DEVICES)}")
        for key in _POSITIVE:
            value = getattr(self, key)
            require(_is_number(value) and value > 0, f"hardware.{key}", value, "above 0")
        for key in _FRACTIONS:
            value = getattr(self, key)
            require(_is_number(value) and 0 < value <= 1, f"hardware.{key}", value, "in (0, 1]")
        for key in _SECONDS:
            value = getattr(self, key)
            require(_is_number(value) and value >= 0, f"hardware.{key}", value, "0 or more")
        require(isinstance(self.flops_per_s, Mapping), "hardware.flops_per_s", self.flops_per_s, "one number a dtype")
        for dtype, value in self.flops_per_s.items():
            require(
                value is None or (_is_number(value) and value > 0),
                f"hardware.flops_per_s.{dtype}",
                value,
                "above 0, or null where there are no such products",
            )

    @classmethod
    def named(cls, name: str) -> HardwareConfig:
        """One of ours: `h200` is conf/hardware/h200.yaml.

        Raises:
            ValueError: there is none of that name.
        """
        # Not needed by whoever brings numbers.
        import yaml

        file = _CONF / f"{name}.yaml"
        known = sorted(path.stem for path in _CONF.glob("*.yaml"))
        require(name in known, "hardware", name, f"one of {', '.join(known)}, or a HardwareConfig")
        return cls(**yaml.safe_load(file.read_text(encoding="utf-8")))

    def peak_flops_per_s(self, dtype: str) -> float:
        """Of products in one dtype.

        Raises:
            ValueError: this device has none.
        """
        found = self.flops_per_s.get(dtype)
        if found is None:
            known = ", ".join(name for name, value in self.flops_per_s.items() if value is not None)
            raise ValueError(f"hardware={self.name!r}: has no hardware.flops_per_s.{dtype}; there are {known}")
        return float(found)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
