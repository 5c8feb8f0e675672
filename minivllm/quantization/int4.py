"""4-bit weights in groups (W4A16): a quarter of fp16's bytes. Rounding to the nearest here; `gptq` and `awq` choose the
same kind of codes with care."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor

from minivllm.config import require
from minivllm.quantization.base import IntegerScheme, LinearTarget
from minivllm.quantization.weight import QuantizedWeight, round_to_nearest

GROUP_SIZES = (32, 64, 128)


class Int4(IntegerScheme):
    """Round each weight to the nearest of the 16 steps of its group.

    Args:
        group_size: neighbouring inputs that share a scale: 32, 64 or 128.
        group_sizes: another size for projections of these names or patterns, such as {"*.down": 32}.
        symmetric: steps to both sides of zero, without a zero for each group.
        target: what the operations are for.
    """

    def __init__(
        self,
        *,
        target: LinearTarget,
        group_size: int = 64,
        group_sizes: Mapping[str, int] | None = None,
        symmetric: bool = False,
    ) -> None:
        super().__init__(target=target)
        allowed = ", ".join(map(str, GROUP_SIZES))
        require(group_size in GROUP_SIZES, "quantization.group_size", group_size, f"one of {allowed}")
        self.group_size = group_size
        self.group_sizes = dict(group_sizes or {})
        for pattern, size in self.group_sizes.items():
            require(size in GROUP_SIZES, f"quantization.group_sizes.{pattern}", size, f"one of {allowed}")
        require(isinstance(symmetric, bool), "quantization.symmetric", symmetric, "true or false")
        self.symmetric = symmetric

    def group_size_of(self, name: str, num_inputs: int) -> int:
        """The group size of one projection.

        Raises:
            ValueError: it does not divide the inputs.
        """
        own = [(pattern, size) for pattern, size in self.group_sizes.items() if fnmatchcase(name, pattern)]
        key, size = ("group_size", self.group_size) if not own else (f"group_sizes.{own[-1][0]}", own[-1][1])
        if num_inputs % size:
            fitting = [str(other) for other in GROUP_SIZES if num_inputs % other == 0]
            choice = f"choose {' or '.join(fitting)}, or " if fitting else ""
            raise ValueError(
                f"quantization.{key}={size}: does not divide the {num_inputs} inputs of {name}: {choice}give it one of "
                f"its own with quantization.group_sizes, or leave it out with quantization.skip"
            )
        return size

    def quantize(self, name: str, weight: Tensor, x: Tensor | None) -> QuantizedWeight:
        size = self.group_size_of(name, weight.shape[1])
        return round_to_nearest(weight, bits=4, group_size=size, symmetric=self.symmetric)
