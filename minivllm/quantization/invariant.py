"""Weights as they are, multiplied by our own GPU kernel, in which a row does not depend on the rows beside it: not by a
bit. cuBLAS picks another kernel, and with it another order of summation, for another number of rows."""

from __future__ import annotations

from torch import Tensor

from minivllm.quantization.none import OutInLinear
from minivllm_kernels.linear.kernel import linear


class InvariantLinear(OutInLinear):
    """Weight stored [out, in]."""

    __slots__ = ()

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
