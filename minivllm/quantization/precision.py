"""What the weights of a model came to be. No torch: it is part of what a runner reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """An account of a model's projections.

    Args:
        name: of the scheme, such as `gptq`; of a checkpoint that came quantized, `int4 in the checkpoint`.
        num_weights, num_bytes: of the projections that the scheme covers, scales and all, biases left out; those that
            were skipped are not among them.
        num_quantized_weights, num_quantized_bytes: of those that are in codes.
    """

    name: str
    num_weights: int
    num_bytes: int
    num_quantized_weights: int
    num_quantized_bytes: int

    @property
    def bits_per_weight(self) -> float | None:
        """Of the projections that the scheme covers; None where it covers none."""
        return 8 * self.num_bytes / self.num_weights if self.num_weights else None
