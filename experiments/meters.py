"""Energy, GPU clocks and GPU temperature, from the counters that the machine itself keeps.

A GPU counts its energy since the driver was loaded (NVML). A CPU with RAPL counts per package, and per memory
controller where it has one, in registers that wrap around. Where neither can be read there is no figure, and the
reason stands in its place: nothing is estimated from power ratings.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")
# NVML's counter moves about ten times a second: over two seconds that is an error of 5 %.
SHORTEST_NVML_S = 2.0
# RAPL's registers move a thousand times a second.
SHORTEST_RAPL_S = 0.02


@dataclass(kw_only=True)
class EnergyMeter:
    """Joules between `start` and `stop`.

    Args:
        source: where they come from, or why there are none.
        counters: none where there is no meter.
        shortest_s: a shorter window says nothing.
    """

    source: str
    counters: tuple[Counter, ...] = ()
    shortest_s: float = 0.0

    def start(self) -> None:
        for counter in self.counters:
            counter.start()

    def sample(self) -> None:
        """To be called more often than a counter wraps around, which takes a package at its limit ten minutes."""
        for counter in self.counters:
            counter.sample()

    def stop(self, duration_s: float) -> tuple[float | None, str]:
        """(joules, their source), or (None, why there are none)."""
        self.sample()
        if not self.counters:
            return None, self.source
        if duration_s < self.shortest_s:
            what = self.source.partition(":")[0]
            return None, f"none: {duration_s:.2f} s is too short for {what}, which needs {self.shortest_s:g} s"
        return sum(counter.total_j for counter in self.counters), self.source


@dataclass(kw_only=True)
class RaplCounter:
    """One domain of RAPL: `energy_uj` counts up to `max_energy_range_uj` and starts again at 0."""

    folder: Path
    total_j: float = 0.0
    _range_uj: int = field(init=False)
    _last_uj: int = field(init=False)

    def __post_init__(self) -> None:
        self._range_uj = int((self.folder / "max_energy_range_uj").read_text())
        self.start()

    def start(self) -> None:
        self._last_uj, self.total_j = self._read_uj(), 0.0

    def sample(self) -> None:
        now_uj = self._read_uj()
        self.total_j += (now_uj - self._last_uj) % (self._range_uj + 1) / 1e6
        self._last_uj = now_uj

    def _read_uj(self) -> int:
        return int((self.folder / "energy_uj").read_text())


@dataclass(kw_only=True)
class NvmlCounter:
    """A GPU's total energy, in millijoules since the driver was loaded."""

    gpu: Gpu
    total_j: float = 0.0
    _first_mj: int = 0

    def start(self) -> None:
        self._first_mj, self.total_j = self.gpu.energy_mj(), 0.0

    def sample(self) -> None:
        self.total_j = (self.gpu.energy_mj() - self._first_mj) / 1e3


Counter = RaplCounter | NvmlCounter


class Gpu:
    """A GPU as NVML sees it.

    Args:
        nvml: the module `pynvml`.
        uuid: of the GPU, as torch names it.
    """

    def __init__(self, nvml: Any, uuid: str) -> None:
        nvml.nvmlInit()
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")

    def energy_mj(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def clock_mhz(self) -> int:
        """Of the streaming multiprocessors, now."""
        return int(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))

    def temperature_c(self) -> int:
        return int(self._nvml.nvmlDeviceGetTemperature(self._handle, self._nvml.NVML_TEMPERATURE_GPU))


@dataclass(frozen=True, kw_only=True, slots=True)
class Meters:
    """What this run can read of its machine."""

    energy: EnergyMeter
    # None where there is no GPU, or NVML does not speak; then `reason` says why.
    gpu: Gpu | None
    reason: str

    def sensors(self, when: str) -> dict[str, Any]:
        """Columns of `runs` for `start` or `end` of the measurement."""
        if self.gpu is None:
            return {"env.gpu_sensors": self.reason}
        return {
            "env.gpu_sensors": "nvml",
            f"env.gpu_clock_{when}_mhz": self.gpu.clock_mhz(),
            f"env.gpu_temperature_{when}_c": self.gpu.temperature_c(),
        }


def open_meters(device: str, *, nvml: Any = None, rapl: Path = RAPL) -> Meters:
    """The meters of a run's device, which has been used already.

    Args:
        device: `cpu`, `cuda`, or `simulated`, which has none.
        nvml: stands for the module `pynvml`, which is imported where this is None.
        rapl: the folder of the kernel's power capping.
    """
    if device == "simulated":
        reason = "none: the run is simulated"
        return Meters(energy=EnergyMeter(source=reason), gpu=None, reason=reason)
    if device != "cuda":
        return Meters(energy=_rapl(rapl), gpu=None, reason="none: the run uses no GPU")
    try:
        gpu = _open_gpu(nvml)
        meter = EnergyMeter(source="nvml: GPU", counters=(NvmlCounter(gpu=gpu),), shortest_s=SHORTEST_NVML_S)
        meter.start()
        gpu.clock_mhz(), gpu.temperature_c()
    except ImportError:
        reason = "none: nvidia-ml-py is not installed; pip install 'minivllm[gpu]'"
    # NVML's errors are classes of a module that may not be there.
    except Exception as error:  # noqa: BLE001
        reason = f"none: NVML: {error}"
    else:
        return Meters(energy=meter, gpu=gpu, reason="")
    return Meters(energy=EnergyMeter(source=reason), gpu=None, reason=reason)


def _open_gpu(nvml: Any) -> Gpu:
    import torch

    return Gpu(
        nvml or importlib.import_module("pynvml"),
        str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid),
    )


def _rapl(root: Path) -> EnergyMeter:
    """Packages, and the memory beside them. `psys` holds both and `core` and `uncore` are parts of a package: each
    joule counts once."""
    names = {path.parent: path.read_text().strip() for path in sorted(root.glob("intel-rapl:*/name"))}
    chosen = [folder for folder, name in names.items() if name.startswith(("package", "dram"))]
    if not chosen:
        return EnergyMeter(source=f"none: no RAPL packages under {root}")
    try:
        counters = tuple(RaplCounter(folder=folder) for folder in chosen)
    except PermissionError:
        return EnergyMeter(source=f"none: {chosen[0].name}/energy_uj under {root} is for root only")
    except (OSError, ValueError) as error:
        return EnergyMeter(source=f"none: RAPL under {root} cannot be read: {error}")
    source = "rapl: " + " + ".join(sorted(names[folder] for folder in chosen))
    return EnergyMeter(source=source, counters=counters, shortest_s=SHORTEST_RAPL_S)
