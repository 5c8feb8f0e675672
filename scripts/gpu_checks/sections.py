"""What there is to run, in which order, and for how long at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Peaks come first and alone; checks run side by side; figures and tuning one at a time.
Phase = Literal["peaks", "checks", "figures", "tune"]
PHASES: tuple[Phase, ...] = ("peaks", "checks", "figures", "tune")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A section: the module `gpu_checks.<module>` that has its pieces.

    Args:
        shards: processes that share the pieces; more than one only where nothing is timed.
        budget_s: after which its processes are ended.
        piece_s: the most that one piece may take: a kernel that hangs costs no more.
        of_engine: whether its figures mean little if the engine's tokens are wrong.
    """

    module: str
    phase: Phase
    shards: int = 1
    budget_s: float
    piece_s: float = 60
    of_engine: bool = False


SECTIONS: dict[str, Plan] = {
    "peaks": Plan(module="peaks", phase="peaks", budget_s=40),
    "elementwise": Plan(module="elementwise", phase="checks", shards=2, budget_s=150),
    "sampling": Plan(module="sampling", phase="checks", shards=3, budget_s=150),
    "decode": Plan(module="decode", phase="checks", shards=5, budget_s=150),
    "prefill": Plan(module="prefill", phase="checks", shards=5, budget_s=150),
    "quantized": Plan(module="quantized", phase="checks", shards=4, budget_s=180),
    "tokens": Plan(module="tokens", phase="checks", shards=4, budget_s=180, piece_s=150),
    "speculation": Plan(module="speculation", phase="checks", shards=2, budget_s=150, piece_s=100),
    # Compiles what the engines of the figures launch, so that these find it in Triton's cache.
    "warm": Plan(module="warm", phase="checks", shards=2, budget_s=180, piece_s=150),
    "speed": Plan(module="speed", phase="figures", budget_s=80),
    "quantized-speed": Plan(module="quantized", phase="figures", budget_s=100),
    "engine": Plan(module="engine", phase="figures", budget_s=170, piece_s=90, of_engine=True),
    "speculation-speed": Plan(module="speculation", phase="figures", budget_s=75, piece_s=60, of_engine=True),
    "load": Plan(module="load", phase="figures", budget_s=130, piece_s=110, of_engine=True),
    "transformers": Plan(module="neighbours", phase="figures", budget_s=100, piece_s=100, of_engine=True),
    "engine-quantized": Plan(module="engine_quantized", phase="figures", budget_s=150, piece_s=60, of_engine=True),
    "tune-decode": Plan(module="tune_decode", phase="tune", budget_s=240, piece_s=200),
    "tune-prefill": Plan(module="tune_prefill", phase="tune", budget_s=240, piece_s=200),
    "tune-matmul": Plan(module="tune_matmul", phase="tune", budget_s=60),
    "tune-quantized": Plan(module="tune_quantized", phase="tune", budget_s=300, piece_s=100),
    "tune-profile": Plan(module="tune_profile", phase="tune", budget_s=150),
}


def chosen(only: str, tune: bool) -> list[str]:
    """Names of the sections to run, in order: those of `only` (`tune` is all of that phase), else all but tuning.
    Where anything is timed, peaks are measured."""
    asked = {name for name in only.split(",") if name}
    names = [
        name
        for name, plan in SECTIONS.items()
        if (not asked and plan.phase != "tune") or name in asked or (plan.phase == "tune" and (tune or "tune" in asked))
    ]
    timed = any(SECTIONS[name].phase in ("figures", "tune") for name in names)
    return ["peaks", *names] if timed and "peaks" not in names else names
