"""What every section is handed: the device, its peaks, and where rows go."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from gpu_checks import results
from gpu_checks.results import Row
from torch import Tensor

# A named piece of a section; what it raises is a failed row.
Piece = tuple[str, Callable[[], None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Peaks:
    """What this machine does at best, measured. `flops` by dtype, such as `bfloat16`."""

    read_bps: float
    copy_bps: float
    flops: dict[str, float]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Peaks | None:
        return cls(**json.loads(path.read_text())) if path.exists() else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """One section at work.

    Args:
        section: its name.
        out: folder for rows and peaks.
        device: where kernels run.
        tiny: smallest shapes, to prove the script itself: nothing is timed.
        peaks: None before they are measured, and where nothing is timed.
        failed: subjects that failed a check in an earlier section: they are not timed.
    """

    section: str
    out: Path
    device: torch.device
    tiny: bool
    peaks: Peaks | None
    failed: frozenset[str] = frozenset()
    # Said of every figure.
    caveat: str = ""
    # Called with each new row.
    heard: Callable[[Row], None] = field(default=lambda row: None)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Triton's interpreter computes bfloat16 wrongly."""
        return (torch.float16, torch.float32) if self.tiny else (torch.float16, torch.bfloat16, torch.float32)

    def add(self, name: str, **values: Any) -> None:
        """A row, kept at once."""
        row = Row(section=self.section, name=name, **values)
        results.append(self.out / "rows.jsonl", row)
        self.heard(row)

    def figure(self, name: str, value: float | None, unit: str, **more: Any) -> None:
        """A measurement: the row of a figure, without its value where nothing is timed."""
        more["detail"] = self.caveat + more.get("detail", "")
        if self.tiny:
            value, more = None, {**more, "floor": None, "detail": "not measured (tiny)"}
        self.add(name, value=value, unit=unit, **more)

    def within(self, name: str, error: float, allowed: float, unit: str = "relative error", detail: str = "") -> None:
        """A check: whether an error is at most what is allowed. A NaN is not."""
        self.add(name, value=error, unit=unit, aim=allowed, ok=bool(error <= allowed), detail=detail)

    def holds(self, name: str, condition: bool, detail: str = "") -> None:
        """A check that has no number."""
        self.add(name, ok=condition, detail=detail)

    def may_time(self, subject: str) -> bool:
        """Whether a kernel's checks passed; the row that says it was not timed otherwise."""
        if subject in self.failed:
            self.add(f"{subject}: not timed", ok=False, detail="its outputs are wrong: see the failed checks")
        return subject not in self.failed

    def bytes_ms(self, num_bytes: float) -> float | None:
        """Milliseconds to read so many bytes at the measured bandwidth."""
        return None if self.peaks is None else num_bytes / self.peaks.read_bps * 1e3

    def copy_ms(self, num_bytes: float) -> float | None:
        """Milliseconds to move so many bytes, reads and writes counted both."""
        return None if self.peaks is None else num_bytes / self.peaks.copy_bps * 1e3

    def generator(self, seed: int = 0) -> torch.Generator:
        generator = torch.Generator(self.device)
        generator.manual_seed(seed)
        return generator


class Section(Protocol):
    """A module of checks."""

    def pieces(self, check: Check) -> Iterator[Piece]: ...


def run_pieces(section: Section, check: Check, *, shard: int, num_shards: int, first: int) -> None:
    """Run a shard's pieces from number `first` on, each marked as begun: a piece that takes the process with it can be
    named and stepped over."""
    mine = list(section.pieces(check))[shard::num_shards]
    for number, (name, piece) in enumerate(mine[first:], first):
        progress_file(check.out, check.section, shard).write_text(json.dumps({"number": number, "name": name}))
        try:
            piece()
        except Exception as error:
            traceback.print_exc()
            check.add(name, ok=False, detail=f"{type(error).__name__}: {error}".strip().splitlines()[0][:400])
            if check.device.type == "cuda" and any(words in str(error) for words in ("CUDA error", "[CUDA]")):
                # Torch's words, and Triton's: nothing on the device works in this process any more.
                raise SystemExit(STEP_OVER) from error
            if check.device.type == "cuda":
                torch.cuda.empty_cache()
    progress_file(check.out, check.section, shard).unlink(missing_ok=True)


# Exit status of a process whose device is lost: the pieces after the one at work are still to be run.
STEP_OVER = 17


def progress_file(out: Path, section: str, shard: int) -> Path:
    """What a shard is at."""
    return out / f".{section}-{shard}.json"


def relative_error(out: Tensor, expected: Tensor) -> float:
    """||out - expected|| / ||expected||, in float64. NaN where `out` has one."""
    wide = expected.double()
    return ((out.double() - wide).norm() / wide.norm().clamp_min(1e-300)).item()


def worst_row(out: Tensor, expected: Tensor) -> float:
    """The largest relative error of a row (the first dimension): a single wrong row drowns in a norm of thousands."""
    if len(out) == 0:
        return 0.0
    wide = expected.double().flatten(1)
    errors = (out.double().flatten(1) - wide).norm(dim=1) / wide.norm(dim=1).clamp_min(1e-300)
    # `max` hands a NaN on.
    return errors.max().item()


def word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def poisoned(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that shows what was not written."""
    if dtype.is_floating_point:
        return torch.full(tuple(shape), float("nan"), dtype=dtype, device=device)
    return torch.full(tuple(shape), torch.iinfo(dtype).min + 7, dtype=dtype, device=device)
