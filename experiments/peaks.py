"""How fast this machine moves bytes and multiplies matrices: the ceilings that MBU and MFU are fractions of.

Measured once a sweep and machine, in a process of its own, so that its buffers are in no run's memory; kept in the
sweep's folder, so that all runs are held against the same ceilings. The best of several tries is taken: whatever else
runs can only make a try slower.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from experiments import tables

# Seconds for each of the two ceilings, first touch of the buffers not counted.
_BUDGET_S = 0.05
_MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What a ceiling belongs to beside the machine.

    Args:
        device: `cpu` or `cuda`.
        num_threads: of torch on a CPU; torch's own choice where None.
        dtype: of the engine's config.
    """

    device: str
    num_threads: int | None
    dtype: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Place:
        execution = config["execution"]
        return cls(device=execution["device"], num_threads=execution["num_threads"], dtype=execution["dtype"])

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Those that a run may turn out to use: on a GPU `auto` is whatever the checkpoint has."""
        if self.dtype != "auto":
            return (self.dtype,)
        return ("float32",) if self.device == "cpu" else ("float32", "bfloat16", "float16")


def kept(path: Path, place: Place, machine: Mapping[str, Any]) -> tuple[Path, dict[str, Any] | None]:
    """(file of a place's peaks, what it holds), under a folder; None where it has not been measured on this machine."""
    names = ("env.cpu", "env.cpu_count", "env.gpu", "env.torch")
    who = {name: machine[name] for name in names} | {key: getattr(place, key) for key in place.__dataclass_fields__}
    digest = hashlib.sha256(json.dumps(who, sort_keys=True).encode()).hexdigest()[:12]
    file = path / f"{digest}.json"
    if not file.exists():
        return file, None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return file, None
    return file, found if isinstance(found, dict) else None


def keep(file: Path, place: Place, peaks: Mapping[str, Any]) -> None:
    """Write what `kept` reads."""
    known = {key: getattr(place, key) for key in place.__dataclass_fields__}
    tables.write_text(file, json.dumps({**known, **peaks}, indent=2) + "\n")


def measure_main(place: Place, pipe: connection.Connection) -> None:
    """Measure in this process and send the peaks, or None where the place does not exist."""
    pipe.send(measure(place))


def measure(place: Place) -> dict[str, Any] | None:
    """`bandwidth_bytes_per_s` (read and written, of a copy) and `flops_per_s` by dtype."""
    import torch

    if place.device == "cuda" and not torch.cuda.is_available():
        return None
    if place.num_threads is not None:
        torch.set_num_threads(place.num_threads)
    cuda = place.device == "cuda"

    def seconds(do: Callable[[], Any]) -> float:
        """The shortest of as many tries as the budget holds."""
        best, spent = float("inf"), 0.0
        do()
        while spent < _BUDGET_S:
            if cuda:
                torch.cuda.synchronize()
            started_s = time.perf_counter()
            do()
            if cuda:
                torch.cuda.synchronize()
            took_s = time.perf_counter() - started_s
            best, spent = min(best, took_s), spent + took_s
        return best

    with torch.inference_mode():
        num_bytes = (1024 if cuda else 64) * _MIB
        # Ones: zeros may all be one page of the kernel's, which a cache holds.
        buffers = [torch.ones(num_bytes, dtype=torch.uint8, device=place.device) for _ in range(2)]
        bandwidth = 2 * num_bytes / seconds(lambda: buffers[0].copy_(buffers[1]))
        buffers.clear()
        flops_per_s = {}
        for name in place.dtypes:
            dtype = getattr(torch, name)
            size = 8192 if cuda else _matrix_size(dtype)
            a, b = (torch.rand(size, size, device=place.device).to(dtype) for _ in range(2))
            product = torch.empty_like(a)
            took_s = seconds(lambda a=a, b=b, product=product: torch.mm(a, b, out=product))  # type: ignore[misc]
            flops_per_s[name] = 2 * size**3 / took_s
    return {"bandwidth_bytes_per_s": bandwidth, "flops_per_s": flops_per_s}


def _matrix_size(dtype: Any) -> int:
    """Large enough to be fast, small enough that a dtype without a fast product does not take seconds."""
    import torch

    for size in (128, 256, 512):
        a = torch.zeros(size, size, dtype=dtype)
        torch.mm(a, a)
        started_s = time.perf_counter()
        torch.mm(a, a)
        # The next one takes eight times as long.
        if time.perf_counter() - started_s > 0.004:
            return size
    return 1024
