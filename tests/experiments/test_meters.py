"""Energy, clocks and temperature: a folder like the kernel's and an object like NVML, for what a machine may lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.meters import EnergyMeter, Gpu, NvmlCounter, open_meters
from experiments.metrics import economy

RANGE_UJ = 262_143_328_850


def _make_rapl(root: Path, **domains: str) -> Path:
    """Domains by folder (`0`, `0_1` for the first package's second part), each a name."""
    for folder, name in domains.items():
        path = root / f"intel-rapl:{folder.removeprefix('d').replace('_', ':')}"
        path.mkdir(parents=True)
        (path / "name").write_text(f"{name}\n")
        (path / "energy_uj").write_text("1000000\n")
        (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return root


def _set_uj(root: Path, folder: str, value: int) -> None:
    (root / f"intel-rapl:{folder}" / "energy_uj").write_text(f"{value}\n")


def test_packages_and_their_memory_are_added_and_no_joule_counts_twice(tmp_path: Path) -> None:
    root = _make_rapl(tmp_path, d0="package-0", d0_0="core", d0_1="dram", d1="package-1", d2="psys")
    meter = open_meters("cpu", rapl=root).energy
    assert meter.source == "rapl: dram + package-0 + package-1"
    meter.start()
    for folder, value in (
        ("0", 4_000_000),
        ("0:0", 9_000_000),
        ("0:1", 1_500_000),
        ("1", 2_000_000),
        ("2", 99_000_000),
    ):
        _set_uj(root, folder, value)
    assert meter.stop(1.0) == (pytest.approx(3 + 0.5 + 1), meter.source)


def test_a_register_that_wraps_around_twice_is_followed(tmp_path: Path) -> None:
    root = _make_rapl(tmp_path, d0="package-0")
    meter = open_meters("cpu", rapl=root).energy
    _set_uj(root, "0", RANGE_UJ - 1_000_000)
    meter.start()
    for value in (1_999_999, RANGE_UJ - 5, 2_000_000):
        _set_uj(root, "0", value)
        meter.sample()
    energy_j, _ = meter.stop(1.0)
    assert energy_j == pytest.approx((1_000_000 + RANGE_UJ + 1 + 2_000_001) / 1e6)


def test_what_cannot_be_read_is_null_with_the_reason(tmp_path: Path) -> None:
    none = open_meters("cpu", rapl=tmp_path / "absent")
    none.energy.start()
    assert none.energy.stop(9.0) == (None, f"none: no RAPL packages under {tmp_path}/absent")
    assert none.sensors("start") == {"env.gpu_sensors": "none: the run uses no GPU"}
    broken = _make_rapl(tmp_path / "broken", d0="package-0")
    (broken / "intel-rapl:0" / "energy_uj").write_text("")
    assert open_meters("cpu", rapl=broken).energy.source.startswith("none: RAPL under")


def test_a_counter_that_refuses_is_said_to_be_for_root_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, read = _make_rapl(tmp_path, d0="package-0"), Path.read_text

    def refuse(self: Path, *rest: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *rest)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert open_meters("cpu", rapl=root).energy.source == f"none: intel-rapl:0/energy_uj under {root} is for root only"


class _Nvml:
    """NVML with one GPU."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self) -> None:
        self.energy_mj, self.asked = 5_000, ""

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked = uuid
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self.energy_mj

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return 1980

    def nvmlDeviceGetTemperature(self, handle: str, kind: int) -> int:
        return 41


def test_a_gpu_counts_millijoules_and_short_windows_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _Nvml()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), {"uuid": "12-ab"})())
    meters = open_meters("cuda", nvml=nvml)
    assert nvml.asked == "GPU-12-ab"
    meters.energy.start()
    nvml.energy_mj += 12_500
    assert meters.energy.stop(4.0) == (12.5, "nvml: GPU")
    energy_j, why = meters.energy.stop(0.3)
    assert energy_j is None and why == "none: 0.30 s is too short for nvml, which needs 2 s"
    assert meters.sensors("end") == {
        "env.gpu_sensors": "nvml",
        "env.gpu_clock_end_mhz": 1980,
        "env.gpu_temperature_end_c": 41,
    }


def test_a_gpu_without_an_energy_counter_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Old(_Nvml):
        def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
            raise RuntimeError("Not Supported")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), {"uuid": "x"})())
    meters = open_meters("cuda", nvml=_Old())
    assert meters.energy.stop(9.0) == (None, "none: NVML: Not Supported")


def test_a_meter_starts_again_from_nothing() -> None:
    nvml = _Nvml()
    meter = EnergyMeter(source="nvml: GPU", counters=(NvmlCounter(gpu=Gpu(nvml, "GPU-1")),))
    for _ in range(2):
        meter.start()
        nvml.energy_mj += 1_000
        assert meter.stop(1.0)[0] == 1.0


def test_energy_and_money_are_over_output_tokens_and_null_where_unknown() -> None:
    assert economy(1000, 36.0, 50.0, 2.0) == {
        "energy_j": 50.0,
        "energy_per_output_token_j": 0.05,
        # A hundredth of an hour, for a thousandth of a million tokens.
        "cost_per_million_output_tokens": pytest.approx(20.0),
    }
    assert set(economy(0, 1.0, 1.0, 1.0).values()) == {1.0, None}
    assert set(economy(10, 1.0, None, None).values()) == {None}
