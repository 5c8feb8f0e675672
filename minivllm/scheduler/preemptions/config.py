"""What becomes of victims, and how much host memory there is for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minivllm.component import Component, component_of_ours, is_count, require

_RECOMPUTE = "minivllm.scheduler.preemptions.recompute.Recompute"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreemptionConfig:
    """How victims are preempted.

    Args:
        mode: a `PreemptionMode`.
        num_swap_blocks: K/V blocks that host memory has room for; from `swap_bytes` where None.
        swap_bytes: of host memory, pinned on a GPU, where `num_swap_blocks` is None.
    """

    mode: Component = Component(target=_RECOMPUTE)
    num_swap_blocks: int | None = None
    swap_bytes: int | None = None

    def __post_init__(self) -> None:
        blocks, num_bytes = self.num_swap_blocks, self.swap_bytes
        require(blocks is None or is_count(blocks), "preemption.num_swap_blocks", blocks, "null or 1 or more")
        require(num_bytes is None or is_count(num_bytes), "preemption.swap_bytes", num_bytes, "null or 1 or more")
        if self.swaps:
            given = blocks is not None or num_bytes is not None
            require(given, "preemption.num_swap_blocks", blocks, "1 or more where preemption.swap_bytes is null, too")
        else:
            for name in ("num_swap_blocks", "swap_bytes"):
                value = getattr(self, name)
                require(
                    value is None, f"preemption.{name}", value, "null with preemption=recompute, which keeps nothing"
                )

    @property
    def swaps(self) -> bool:
        """Whether a victim's K/V may go to host memory."""
        return self.mode.target != _RECOMPUTE

    @classmethod
    def named(
        cls, name: str, *, num_swap_blocks: int | None = None, swap_bytes: int | None = None, **kwargs: Any
    ) -> PreemptionConfig:
        """A mode of ours: `swap` is `minivllm.scheduler.preemptions.swap.Swap`.

        Args:
            name: of the module.
            num_swap_blocks, swap_bytes: as in the class.
            kwargs: what the mode is made with.
        """
        mode = component_of_ours("minivllm.scheduler.preemptions", name, kwargs)
        return cls(mode=mode, num_swap_blocks=num_swap_blocks, swap_bytes=swap_bytes)
